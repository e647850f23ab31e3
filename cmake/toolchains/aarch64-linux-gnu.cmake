# Cross-compiles for arm64 Linux, by default with the g++-aarch64-linux-gnu of Debian and Ubuntu; programs run in
# qemu-user where it is installed (cmake/bootstrap.sh --arm64 brings both).
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
if(NOT CMAKE_CXX_COMPILER)
  set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
endif()

# `max` has every feature that this qemu knows, so that all clusters run.
find_program(FLYWHEEL_QEMU NAMES qemu-aarch64 qemu-aarch64-static)
mark_as_advanced(FLYWHEEL_QEMU)
if(FLYWHEEL_QEMU)
  set(CMAKE_CROSSCOMPILING_EMULATOR "${FLYWHEEL_QEMU};-cpu;max;-L;/usr/aarch64-linux-gnu")
endif()

# Libraries must be the target's; headers that fit every machine may be the host's.
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
