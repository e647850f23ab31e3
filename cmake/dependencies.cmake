# Third-party libraries. All are private: none appears in a public header.
set(FLYWHEEL_LIBRARIES "")
if(NOT FLYWHEEL_KERNELS_ONLY)
  find_package(nlohmann_json REQUIRED)  # headers only, used while compiling

  # PCRE2 (pre-tokenizer expressions), utf8proc (Unicode normalisation), yaml-cpp (recipes), OpenSSL (SHA-256)
  include(${CMAKE_CURRENT_LIST_DIR}/third_party.cmake)
  if(FLYWHEEL_MISSING)
    message(FATAL_ERROR "flywheel needs ${FLYWHEEL_MISSING}; cmake/bootstrap.sh installs what is missing")
  endif()
  set(FLYWHEEL_LIBRARIES $<BUILD_INTERFACE:nlohmann_json::nlohmann_json> flywheel_private::pcre2 flywheel_private::utf8proc
    flywheel_private::yaml-cpp flywheel_private::openssl)
endif()

if(NOT FLYWHEEL_SERIAL)
  set(THREADS_PREFER_PTHREAD_FLAG ON)
  find_package(Threads REQUIRED)
  if(FLYWHEEL_WITH_TBB)
    find_package(TBB CONFIG REQUIRED)
  endif()
endif()

function(flywheel_link_dependencies target)
  target_link_libraries(${target} PRIVATE ${FLYWHEEL_LIBRARIES} ${CMAKE_DL_LIBS})  # dlopen: plug-ins of devices
  if(FLYWHEEL_SERIAL)
    target_compile_definitions(${target} PRIVATE FLYWHEEL_SERIAL=1)
  else()
    target_link_libraries(${target} PRIVATE Threads::Threads)
    if(FLYWHEEL_WITH_TBB)
      target_link_libraries(${target} PRIVATE TBB::tbb)
      target_compile_definitions(${target} PRIVATE FLYWHEEL_WITH_TBB=1)
    endif()
  endif()
endfunction()
