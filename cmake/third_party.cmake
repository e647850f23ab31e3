# Finds the C libraries that flywheel links privately. Used by the build, and installed beside the package config,
# because whoever links a static flywheel links these too. Each is looked for as a CMake package first (upstream, vcpkg,
# Conan), then with pkg-config's help, then in the usual places (Debian's PCRE2 and utf8proc ship no CMake package).
include_guard(DIRECTORY)

# flywheel_find_c_library(NAME "CMake package" "its targets" pkg-config-module header libraries...)
# defines flywheel_private::NAME, or sets FLYWHEEL_MISSING in the caller's scope.
macro(flywheel_find_c_library name package targets module header)
  if(NOT TARGET flywheel_private::${name})
    find_package(${package} CONFIG QUIET)
    foreach(_flywheel_target IN ITEMS ${targets})
      if(TARGET ${_flywheel_target} AND NOT TARGET flywheel_private::${name})
        add_library(flywheel_private::${name} INTERFACE IMPORTED)
        set_target_properties(flywheel_private::${name} PROPERTIES INTERFACE_LINK_LIBRARIES ${_flywheel_target})
      endif()
    endforeach()
  endif()
  if(NOT TARGET flywheel_private::${name})
    find_package(PkgConfig QUIET)
    if(PkgConfig_FOUND)
      pkg_check_modules(_FLYWHEEL_PC_${name} QUIET ${module})
    endif()
    find_path(FLYWHEEL_${name}_INCLUDE_DIR ${header} HINTS ${_FLYWHEEL_PC_${name}_INCLUDE_DIRS})
    find_library(FLYWHEEL_${name}_LIBRARY NAMES ${ARGN} HINTS ${_FLYWHEEL_PC_${name}_LIBRARY_DIRS})
    mark_as_advanced(FLYWHEEL_${name}_INCLUDE_DIR FLYWHEEL_${name}_LIBRARY)
    if(FLYWHEEL_${name}_INCLUDE_DIR AND FLYWHEEL_${name}_LIBRARY)
      add_library(flywheel_private::${name} UNKNOWN IMPORTED)
      set_target_properties(flywheel_private::${name} PROPERTIES
        IMPORTED_LOCATION "${FLYWHEEL_${name}_LIBRARY}" INTERFACE_INCLUDE_DIRECTORIES "${FLYWHEEL_${name}_INCLUDE_DIR}")
    else()
      set(FLYWHEEL_MISSING "${module}")
    endif()
  endif()
endmacro()

set(FLYWHEEL_MISSING "")
flywheel_find_c_library(pcre2 PCRE2 "PCRE2::8BIT;pcre2::pcre2-8" libpcre2-8 pcre2.h pcre2-8 pcre2-8-static)
flywheel_find_c_library(utf8proc utf8proc "utf8proc::utf8proc;utf8proc" libutf8proc utf8proc.h utf8proc utf8proc_static)
