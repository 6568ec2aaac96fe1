# The kernels compiled once more so that every access to memory is looked at for data races (race/race.cc). The compiler's
# instrumentation is ThreadSanitizer's, its library is not: none of this goes together with AddressSanitizer.
if(TANDEM_SANITIZE)
  return()
endif()

set(race_instrumented ${cuda_kernels} ${cuda_host}/runtime/ptx_copy.cc ${cuda_host}/runtime/ptx_matrix.cc)
add_library(cuda_host_race_kernels OBJECT ${race_instrumented})
target_include_directories(cuda_host_race_kernels PRIVATE ${cuda_host}/include ${CMAKE_SOURCE_DIR})
target_compile_options(cuda_host_race_kernels PRIVATE -O2 -fPIC -Wno-unknown-pragmas -fsanitize=thread)
add_library(cuda_host_race OBJECT ${cuda_host}/race/race.cc)
target_include_directories(cuda_host_race PRIVATE ${cuda_host}/include ${CMAKE_SOURCE_DIR})
target_compile_options(cuda_host_race PRIVATE -O2 -fPIC)

# The module with these in the place of the ordinary ones.
add_library(cuda_host_race_module MODULE $<TARGET_OBJECTS:cuda_host_race> $<TARGET_OBJECTS:cuda_host_race_kernels>
            $<FILTER:$<TARGET_OBJECTS:cuda_host_runtime>,EXCLUDE,/ptx_[a-z]*\\.cc\\.o$>
            $<FILTER:$<TARGET_OBJECTS:cuda_host_backend>,EXCLUDE,\\.cu\\.o$>)
target_link_libraries(cuda_host_race_module PRIVATE ${OPENBLAS_LIBRARY} Threads::Threads ${CMAKE_DL_LIBS})
set_target_properties(cuda_host_race_module PROPERTIES OUTPUT_NAME tandem_cuda_race LINKER_LANGUAGE CXX
  LIBRARY_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/cuda_host)

# Every operation case; the test is defined beside the cases.
foreach(case bf16 fp32)
  add_test(NAME cuda_host_race_ops_${case} COMMAND test_ops_gpu ${case})
  set_tests_properties(cuda_host_race_ops_${case} PROPERTIES TIMEOUT 600 LABELS "cuda_host;race"
    ENVIRONMENT "TANDEM_GPU_MODULE=$<TARGET_FILE:cuda_host_race_module>;OMP_NUM_THREADS=1")
endforeach()

# Planted races.
set_source_files_properties(${cuda_host}/selftest_races.cu PROPERTIES LANGUAGE CXX
  COMPILE_OPTIONS "-x;c++;-fsanitize=thread")
tandem_test(cuda_host_races ${cuda_host}/selftest_races.cu LIBS cuda_host_runtime LABELS "cuda_host;race")
target_sources(test_cuda_host_races PRIVATE $<TARGET_OBJECTS:cuda_host_race>)
target_link_libraries(test_cuda_host_races PRIVATE ${CMAKE_DL_LIBS})
