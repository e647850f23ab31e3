# The README's program is the example file itself: cmake -DROOT=FOLDER -P check_snippets.cmake
file(READ ${ROOT}/README.md readme)
file(READ ${ROOT}/examples/generate.cpp program)
string(FIND "${readme}" "```cpp\n${program}```" at)
if(at EQUAL -1)
  message(FATAL_ERROR "README.md does not show examples/generate.cpp as it is; copy the file between ```cpp and ```")
endif()
