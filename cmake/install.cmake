# Installed files: library, headers, command, models, CMake package, pkg-config file. Nothing holds an absolute path of
# the machine it was built on: an installed tree can be moved.
option(FLYWHEEL_INSTALL "Make install rules" ${PROJECT_IS_TOP_LEVEL})
if(NOT FLYWHEEL_INSTALL)
  return()
endif()
include(CMakePackageConfigHelpers)
set(FLYWHEEL_CMAKE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/flywheel)

install(TARGETS flywheel EXPORT flywheelTargets
  RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT flywheel_runtime
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT flywheel_runtime NAMELINK_COMPONENT flywheel_development
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT flywheel_development)
install(TARGETS flywheel-plugin EXPORT flywheelPluginTargets)
set_target_properties(flywheel-plugin PROPERTIES EXPORT_NAME plugin)
install(DIRECTORY include/flywheel DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT flywheel_development
  FILES_MATCHING PATTERN "*.hpp" PATTERN "*.h" PATTERN "*.inc")
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/licenses/flywheel COMPONENT flywheel_development)

foreach(program flywheel-cli flywheel-device-conformance)
  if(NOT TARGET ${program})
    continue()
  endif()
  install(TARGETS ${program} EXPORT flywheelTargets
    RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT flywheel_command)
  if(BUILD_SHARED_LIBS AND NOT CMAKE_INSTALL_RPATH AND NOT CMAKE_SKIP_INSTALL_RPATH)
    file(RELATIVE_PATH to_lib /${CMAKE_INSTALL_BINDIR} /${CMAKE_INSTALL_LIBDIR})
    set_target_properties(${program} PROPERTIES INSTALL_RPATH
      "$<IF:$<PLATFORM_ID:Darwin>,@loader_path,$ORIGIN>/${to_lib}")
  endif()
endforeach()
if(TARGET flywheel-cli)
  set_target_properties(flywheel-cli PROPERTIES EXPORT_NAME command)
endif()
if(TARGET flywheel-device-conformance)
  set_target_properties(flywheel-device-conformance PROPERTIES EXPORT_NAME device_conformance)
endif()

file(GLOB models examples/models/*.gguf)
if(models)
  install(FILES ${models} examples/models/README.md DESTINATION ${CMAKE_INSTALL_DATADIR}/flywheel/models
    COMPONENT flywheel_command)
endif()

# CMake package. What a consumer must find depends on how the library was built: a shared library brings its private
# dependencies itself, a static one needs them at the consumer's link.
if(BUILD_SHARED_LIBS)
  set(FLYWHEEL_NEEDS_PRIVATE 0)
else()
  set(FLYWHEEL_NEEDS_PRIVATE 1)
endif()
set(FLYWHEEL_NEEDS_THREADS 0)
set(FLYWHEEL_NEEDS_TBB 0)
if(NOT FLYWHEEL_SERIAL)
  set(FLYWHEEL_NEEDS_THREADS 1)
  if(FLYWHEEL_WITH_TBB)
    set(FLYWHEEL_NEEDS_TBB 1)
  endif()
endif()
foreach(set flywheelTargets flywheelPluginTargets)
  install(EXPORT ${set} NAMESPACE flywheel:: DESTINATION ${FLYWHEEL_CMAKE_DIR} COMPONENT flywheel_development)
endforeach()
configure_package_config_file(cmake/flywheelConfig.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/flywheelConfig.cmake
  INSTALL_DESTINATION ${FLYWHEEL_CMAKE_DIR} NO_SET_AND_CHECK_MACRO)
# Before 1.0 a new minor version may change the interface (docs/versioning.md).
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/flywheelConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/flywheelConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/flywheelConfigVersion.cmake
  cmake/third_party.cmake DESTINATION ${FLYWHEEL_CMAKE_DIR} COMPONENT flywheel_development)

# pkg-config. Only one kind of library is installed, so when it is static its dependencies are public here: linking works
# with and without --static.
set(requires libpcre2-8 libutf8proc yaml-cpp libcrypto)
set(libs "")
if(FLYWHEEL_NEEDS_TBB)
  list(APPEND requires tbb)
endif()
if(FLYWHEEL_NEEDS_THREADS AND NOT APPLE AND NOT WIN32)
  set(libs "-pthread")
endif()
foreach(library IN LISTS CMAKE_DL_LIBS)
  string(APPEND libs " -l${library}")
endforeach()
string(REPLACE ";" ", " requires "${requires}")
if(BUILD_SHARED_LIBS)
  set(FLYWHEEL_PC_DEPENDENCIES "Requires.private: ${requires}\nLibs: -L\${libdir} -lflywheel\nLibs.private: ${libs}")
else()
  set(FLYWHEEL_PC_DEPENDENCIES "Requires: ${requires}\nLibs: -L\${libdir} -lflywheel ${libs}")
endif()
file(RELATIVE_PATH FLYWHEEL_PC_PREFIX /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
string(REGEX REPLACE "/$" "" FLYWHEEL_PC_PREFIX "${FLYWHEEL_PC_PREFIX}")
configure_file(cmake/flywheel.pc.in ${CMAKE_CURRENT_BINARY_DIR}/flywheel.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/flywheel.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig
  COMPONENT flywheel_development)
