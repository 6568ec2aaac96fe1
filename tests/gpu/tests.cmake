# The programs that load the GPU module: what tests/gpu_check.sh runs with a real one. They are known when every folder has
# listed its tests.
function(tandem_list_gpu_tests)
  get_property(targets DIRECTORY PROPERTY BUILDSYSTEM_TARGETS)
  list(FILTER targets INCLUDE REGEX "^test_.*_gpu$")
  list(SORT targets)
  add_custom_target(gpu_tests DEPENDS ${targets})
endfunction()
cmake_language(DEFER CALL tandem_list_gpu_tests)

tandem_gpu_test(pager_gpu gpu/pager_gpu.c LIBS tandem_kernels)

add_test(NAME cuda_host_gpu_check
         COMMAND bash ${CMAKE_CURRENT_LIST_DIR}/gpu_check_test.sh ${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR})
set_tests_properties(cuda_host_gpu_check PROPERTIES TIMEOUT 300 LABELS "cuda_host;slow"
  ENVIRONMENT "${nccl_host_environment};ASAN_OPTIONS=detect_leaks=0")

add_test(NAME cuda_host_gpu_bench
         COMMAND bash ${CMAKE_CURRENT_LIST_DIR}/gpu_bench_test.sh ${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR})
set_tests_properties(cuda_host_gpu_bench PROPERTIES TIMEOUT 300 LABELS "cuda_host"
  ENVIRONMENT "${nccl_host_environment};ASAN_OPTIONS=detect_leaks=0")

add_test(NAME roofline COMMAND bash ${CMAKE_CURRENT_LIST_DIR}/roofline_test.sh ${CMAKE_SOURCE_DIR})
set_tests_properties(roofline PROPERTIES TIMEOUT 60 LABELS "unit")
