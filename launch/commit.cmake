# Writes HEADER with the commit of the tree SOURCE, "+" when files differ from it; only when it changed.
# cmake -DSOURCE=FOLDER -DHEADER=FILE -P commit.cmake
cmake_minimum_required(VERSION 3.25)
set(commit unknown)
find_program(git git)
if(git)
  execute_process(COMMAND ${git} rev-parse --short HEAD WORKING_DIRECTORY ${SOURCE}
                  OUTPUT_VARIABLE head OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
  if(NOT failed)
    execute_process(COMMAND ${git} diff --quiet HEAD -- WORKING_DIRECTORY ${SOURCE} ERROR_QUIET RESULT_VARIABLE differs)
    set(commit ${head})
    if(differs)
      string(APPEND commit "+")
    endif()
  endif()
endif()
file(CONFIGURE OUTPUT ${HEADER} CONTENT "#define TD_COMMIT \"@commit@\"\n" @ONLY)
