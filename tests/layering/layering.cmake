# Fails when a room includes a room above it, or a public header includes a third-party header.
#   cmake -DSOURCE_DIR=<repository> -P layering.cmake
cmake_minimum_required(VERSION 3.22)

# A room may include itself and the rooms named here. `graph` and `device` describe work to each other and stand on one
# floor: their interface headers may include each other.
set(rooms core formats io kernels text graph device model evaluate quant adapt measure cli device_conformance)
set(below_core "")
set(below_formats core)
set(below_io core formats)
set(below_kernels core formats)
set(below_text core formats io)
set(below_graph core formats io kernels text device)
set(below_device core formats io kernels text graph)
set(below_model core formats io kernels text graph device)
set(below_evaluate core formats io kernels text graph device model)
set(below_quant core formats io kernels text graph device model evaluate)
set(below_adapt core formats io kernels text graph device model evaluate quant)
set(below_measure core formats kernels)
set(below_cli core formats io kernels text graph device model evaluate quant adapt measure)

set(below_device_conformance core device cli)

# The C++ standard library; anything else in angle brackets is third-party.
set(standard_headers
  algorithm any array atomic barrier bit bitset cassert cctype cerrno cfenv cfloat charconv chrono cinttypes climits
  clocale cmath codecvt compare complex concepts condition_variable coroutine csetjmp csignal cstdarg cstddef cstdint
  cstdio cstdlib cstring ctime cuchar cwchar cwctype deque exception execution filesystem forward_list fstream functional
  future initializer_list iomanip ios iosfwd iostream istream iterator latch limits list locale map memory
  memory_resource mutex new numbers numeric optional ostream queue random ranges ratio regex scoped_allocator semaphore
  set shared_mutex source_location span sstream stack stdexcept stop_token streambuf string string_view strstream
  syncstream system_error thread tuple type_traits typeindex typeinfo unordered_map unordered_set utility valarray
  variant vector version)

set(complaints "")
set(checked 0)
macro(complain file text)
  string(APPEND complaints "  ${file}: ${text}\n")
endmacro()

# The room of a path or of an included name; empty when it belongs to none.
function(room_of name out)
  set(${out} "" PARENT_SCOPE)
  if(name MATCHES "^(include/flywheel|flywheel|src)/([a-z_]+)/")
    set(${out} "${CMAKE_MATCH_2}" PARENT_SCOPE)
  elseif(name MATCHES "^kernels/")
    set(${out} "kernels" PARENT_SCOPE)
  elseif(name MATCHES "^(cli|device_conformance)/")
    set(${out} "${CMAKE_MATCH_1}" PARENT_SCOPE)  # the programs have src/ in their include path
  endif()
endfunction()

file(GLOB_RECURSE files RELATIVE ${SOURCE_DIR}
  ${SOURCE_DIR}/include/*.hpp ${SOURCE_DIR}/include/*.h ${SOURCE_DIR}/include/*.inc
  ${SOURCE_DIR}/src/*.hpp ${SOURCE_DIR}/src/*.cpp ${SOURCE_DIR}/src/*.inc
  ${SOURCE_DIR}/kernels/*.hpp ${SOURCE_DIR}/kernels/*.cpp ${SOURCE_DIR}/kernels/*.inc)
foreach(file IN LISTS files)
  math(EXPR checked "${checked} + 1")
  room_of("${file}" room)
  if(file MATCHES "^include/flywheel/detail/")
    set(room core)  # helpers of all rooms, so they may know core only
  endif()
  set(public FALSE)
  if(file MATCHES "^include/")
    set(public TRUE)
  endif()
  if(room AND NOT room IN_LIST rooms)
    complain("${file}" "the room '${room}' is not in tests/layering/layering.cmake and ARCHITECTURE.md")
    continue()
  endif()

  file(STRINGS "${SOURCE_DIR}/${file}" lines REGEX "^[ \t]*#[ \t]*include")
  foreach(line IN LISTS lines)
    if(NOT line MATCHES "^[ \t]*#[ \t]*include[ \t]*([<\"])([^>\"]+)[>\"]")
      continue()
    endif()
    set(bracket "${CMAKE_MATCH_1}")
    set(name "${CMAKE_MATCH_2}")
    if(bracket STREQUAL "<")
      if(name MATCHES "^flywheel/")
        complain("${file}" "write \"${name}\", not <${name}>")
      elseif(file MATCHES "\\.h$" AND name STREQUAL "stdint.h")
        # the interfaces in C stand on C's library
      elseif(public AND NOT name IN_LIST standard_headers)
        complain("${file}" "a public header must not include <${name}>")
      endif()
      continue()
    endif()
    if(NOT public AND NOT name MATCHES "/")
      # a neighbour, or made by the build for this room
      get_filename_component(folder "${file}" DIRECTORY)
      set(name "${folder}/${name}")
    endif()
    room_of("${name}" target)
    if(name MATCHES "^flywheel/(detail/|version.hpp)")
      set(target core)
    endif()
    if(public AND NOT name MATCHES "^flywheel/")
      complain("${file}" "a public header must not include \"${name}\": it is not installed")
    elseif(name STREQUAL "flywheel/flywheel.hpp")
      if(NOT room STREQUAL "cli")
        complain("${file}" "the umbrella header is for users; include what is used")
      endif()
    elseif(file STREQUAL "include/flywheel/flywheel.hpp" OR target STREQUAL room)
      # the umbrella includes everything; a room includes itself
    elseif(NOT target)
      complain("${file}" "\"${name}\" belongs to no room; write paths from include/ or the repository's root")
    elseif(NOT target IN_LIST below_${room})
      complain("${file}" "${room} must not include ${target} (\"${name}\")")
    endif()
  endforeach()
endforeach()

if(checked EQUAL 0)
  message(FATAL_ERROR "no source files found under '${SOURCE_DIR}'")
endif()
if(complaints)
  message(FATAL_ERROR "includes that point upwards or outwards:\n${complaints}")
endif()
message(STATUS "${checked} files checked")
