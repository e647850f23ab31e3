# The model that becomes part of the command: compile definitions of default_model.cpp.
set(FLYWHEEL_EMBED_MODEL "${PROJECT_SOURCE_DIR}/examples/models/tiny-base-q8_0.gguf" CACHE FILEPATH
  "GGUF file that becomes part of the command; empty: none")
set(method incbin)
if(MSVC)
  set(method array)
endif()
set(FLYWHEEL_EMBED_METHOD ${method} CACHE STRING
  "How it is embedded: incbin (GNU assembler syntax) or array (any compiler)")
set_property(CACHE FLYWHEEL_EMBED_METHOD PROPERTY STRINGS incbin array)

set(definitions FLYWHEEL_EMBED_NAME="")
if(FLYWHEEL_EMBED_MODEL)
  if(NOT EXISTS "${FLYWHEEL_EMBED_MODEL}")
    message(FATAL_ERROR "FLYWHEEL_EMBED_MODEL: no file ${FLYWHEEL_EMBED_MODEL}; set it to a GGUF file or to nothing")
  endif()
  get_filename_component(name "${FLYWHEEL_EMBED_MODEL}" NAME)
  set(definitions FLYWHEEL_EMBED_NAME="${name}")
  if(FLYWHEEL_EMBED_METHOD STREQUAL "array")
    set(data ${CMAKE_CURRENT_BINARY_DIR}/default_model_data.inc)
    add_custom_command(OUTPUT ${data} DEPENDS "${FLYWHEEL_EMBED_MODEL}" ${PROJECT_SOURCE_DIR}/cmake/embed.cmake
      COMMAND ${CMAKE_COMMAND} -DINPUT=${FLYWHEEL_EMBED_MODEL} -DOUTPUT=${data} -P ${PROJECT_SOURCE_DIR}/cmake/embed.cmake
      COMMENT "Embedding ${name}" VERBATIM)
    target_sources(flywheel-cli PRIVATE ${data})
    target_include_directories(flywheel-cli PRIVATE ${CMAKE_CURRENT_BINARY_DIR})
    list(APPEND definitions FLYWHEEL_EMBED_ARRAY=1)
  else()
    list(APPEND definitions FLYWHEEL_EMBED_INCBIN="${FLYWHEEL_EMBED_MODEL}")
  endif()
  set_source_files_properties(default_model.cpp PROPERTIES OBJECT_DEPENDS "${FLYWHEEL_EMBED_MODEL}")
endif()
set_source_files_properties(default_model.cpp PROPERTIES COMPILE_DEFINITIONS "${definitions}")
