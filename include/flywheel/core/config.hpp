// Export macro and ABI namespace. Included by every public header.
#pragma once

// Symbols of the compiled library. A static build needs no macro on the consumer's side: FLYWHEEL_API is empty
// unless the shared library was built for Windows, where the package config defines FLYWHEEL_SHARED.
#if defined(_WIN32)
#  if defined(FLYWHEEL_BUILDING)
#    define FLYWHEEL_API __declspec(dllexport)
#  elif defined(FLYWHEEL_SHARED)
#    define FLYWHEEL_API __declspec(dllimport)
#  else
#    define FLYWHEEL_API
#  endif
#else
#  define FLYWHEEL_API __attribute__((visibility("default")))
#endif

// All names live in `flywheel::v0`, an inline namespace that changes with the ABI version, so that two copies of the
// library in one process do not collide. Write `namespace flywheel::inline v0 {` in headers and sources alike.
