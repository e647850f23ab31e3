// What the system below offers. Private to the library.
#pragma once

#if !defined(FLYWHEEL_SERIAL) && (defined(__unix__) || defined(__APPLE__)) && !defined(__EMSCRIPTEN__)
#  define FLYWHEEL_HAS_MMAP 1
#else
#  define FLYWHEEL_HAS_MMAP 0
#endif

#if !defined(FLYWHEEL_SERIAL)
#  define FLYWHEEL_HAS_THREADS 1
#else
#  define FLYWHEEL_HAS_THREADS 0
#endif
