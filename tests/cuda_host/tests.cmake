# The CUDA backend without a GPU: its sources compiled for the host against an emulation of the CUDA runtime.
set(cuda_host ${CMAKE_CURRENT_SOURCE_DIR}/cuda_host)
file(GLOB cuda_host_sources CONFIGURE_DEPENDS ${cuda_host}/runtime/*.cc ${cuda_host}/runtime/*.c)
list(FILTER cuda_host_sources EXCLUDE REGEX "/nccl_[^/]*$") # a library of its own, as NCCL is
file(GLOB cuda_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/cuda/*.cu
     ${CMAKE_SOURCE_DIR}/kernels/cuda/*.c ${CMAKE_SOURCE_DIR}/runtime/core/*_cuda.c
     ${CMAKE_SOURCE_DIR}/comm/*_nccl.c)
set(cuda_kernels ${cuda_sources})
list(FILTER cuda_kernels INCLUDE REGEX "\\.cu$")
set_source_files_properties(${cuda_kernels} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++")

# The emulated runtime: streams, memory, threads of a block as fibers; cuBLASLt on OpenBLAS.
add_library(cuda_host_runtime STATIC ${cuda_host_sources})
target_include_directories(cuda_host_runtime PUBLIC ${cuda_host}/include ${CMAKE_SOURCE_DIR})
target_link_libraries(cuda_host_runtime PUBLIC tandem_core ${OPENBLAS_LIBRARY})
target_compile_options(cuda_host_runtime PRIVATE -O2 -fPIC)

# The backend's own sources, unchanged.
add_library(cuda_host_backend STATIC ${cuda_sources})
target_link_libraries(cuda_host_backend PUBLIC cuda_host_runtime tandem_comm)
# "#pragma unroll" is for nvcc.
target_compile_options(cuda_host_backend PRIVATE -O2 -fPIC -Wno-unknown-pragmas)

# The module as the program loads it: what it calls of core and comm it finds in the program, so neither is linked in.
add_library(cuda_host_module MODULE $<TARGET_OBJECTS:cuda_host_runtime> $<TARGET_OBJECTS:cuda_host_backend>)
target_link_libraries(cuda_host_module PRIVATE ${OPENBLAS_LIBRARY} Threads::Threads ${CMAKE_DL_LIBS})
set_target_properties(cuda_host_module PROPERTIES OUTPUT_NAME tandem_cuda LINKER_LANGUAGE CXX
  LIBRARY_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/cuda_host)
set(cuda_host_environment TANDEM_GPU_MODULE=$<TARGET_FILE:cuda_host_module> OMP_NUM_THREADS=1
    OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1)

# tandem_gpu_test(NAME "sources" LIBS layer... [CASES word...] [TIMEOUT seconds])
# A program that loads the module, run with the emulated one once per case (its only argument), or once. With a GPU at
# hand the same program runs with the real module.
function(tandem_gpu_test name sources)
  cmake_parse_arguments(T "" "TIMEOUT" "LIBS;CASES" ${ARGN})
  if(NOT T_TIMEOUT)
    set(T_TIMEOUT 60)
  endif()
  add_executable(test_${name} ${sources})
  target_include_directories(test_${name} PRIVATE ${CMAKE_SOURCE_DIR}/tests)
  target_link_libraries(test_${name} PRIVATE ${T_LIBS})
  target_compile_definitions(test_${name} PRIVATE
    TEST_FIXTURES="${CMAKE_SOURCE_DIR}/tests/fixtures" TEST_SOURCE="${CMAKE_SOURCE_DIR}")
  tandem_loads_modules(test_${name})
  add_dependencies(test_${name} cuda_host_module)
  if(NOT T_CASES)
    add_test(NAME cuda_host_${name} COMMAND test_${name})
    set(tests cuda_host_${name})
  endif()
  foreach(case ${T_CASES})
    string(REGEX REPLACE "_gpu$" "" stem ${name})
    add_test(NAME cuda_host_${stem}_${case} COMMAND test_${name} ${case})
    list(APPEND tests cuda_host_${stem}_${case})
  endforeach()
  set_tests_properties(${tests} PROPERTIES TIMEOUT ${T_TIMEOUT} LABELS cuda_host
    ENVIRONMENT "${cuda_host_environment}")
endfunction()

# NCCL between the ranks of one host. What it needs of the runtime it finds in the module.
add_library(nccl_host MODULE ${cuda_host}/runtime/nccl_host.cc)
target_include_directories(nccl_host PRIVATE ${cuda_host}/include ${CMAKE_SOURCE_DIR})
set_target_properties(nccl_host PROPERTIES LINKER_LANGUAGE CXX
  LIBRARY_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/cuda_host)
target_link_libraries(nccl_host PRIVATE ${CMAKE_DL_LIBS})
set(nccl_host_environment ${cuda_host_environment} TANDEM_NCCL_LIBRARY=$<TARGET_FILE:nccl_host>)

# The pager on streams that run when they like, and without some of its waits for events.
tandem_gpu_test(pager_streams_gpu cuda_host/pager.c LIBS tandem_core)
add_test(NAME cuda_host_pager_planted COMMAND test_pager_streams_gpu planted)
set_tests_properties(cuda_host_pager_planted PROPERTIES TIMEOUT 60 LABELS cuda_host
  ENVIRONMENT "${cuda_host_environment}")

# Updates of paged optimizer state have the bits of the CPU's.
tandem_gpu_test(optimizer_gpu cuda_host/optimizer.c LIBS tandem_train)

# Every model family against transformers.
tandem_gpu_test(model_gpu "cuda_host/model.c;model/families_checks.c" LIBS tandem_model tandem_comm
                CASES bf16 fp32 TIMEOUT 300)

# Recorded micro-batches have the bits of queued ones.
tandem_gpu_test(graphs_gpu cuda_host/graphs.c LIBS tandem_model tandem_comm)

# Weights that are dequantized ahead have the bits of those that products dequantize, and without the waits other bits.
tandem_gpu_test(ahead_gpu cuda_host/ahead.c LIBS tandem_model tandem_comm TIMEOUT 240)
add_test(NAME cuda_host_ahead_planted COMMAND test_ahead_gpu planted)
set_tests_properties(cuda_host_ahead_planted PROPERTIES TIMEOUT 120 LABELS cuda_host
  ENVIRONMENT "${cuda_host_environment}")

# Random weights that the GPU draws are those of the host.
tandem_gpu_test(random_weights_gpu cuda_host/random_weights.c LIBS tandem_model tandem_comm)

tandem_gpu_test(device_comm_gpu comm/device_comm_gpu.c LIBS tandem_comm)
add_dependencies(test_device_comm_gpu nccl_host)
set_tests_properties(cuda_host_device_comm_gpu PROPERTIES ENVIRONMENT "${nccl_host_environment}")
foreach(transport staged nccl)
  foreach(ranks 1 2 3)
    foreach(seed 1 2)
      set(name cuda_host_device_comm_${transport}_${ranks}ranks_seed${seed})
      add_test(NAME ${name} COMMAND mpirun -q --oversubscribe -n ${ranks} $<TARGET_FILE:test_device_comm_gpu>
                                    ${transport} ${seed})
      set_tests_properties(${name} PROPERTIES TIMEOUT 60 LABELS "cuda_host;comm"
        ENVIRONMENT "${nccl_host_environment};ASAN_OPTIONS=detect_leaks=0")
    endforeach()
  endforeach()
endforeach()

# Without some of their waits for events the transports must fail.
foreach(planted "staged 0" "staged 1" "staged 2" "nccl 3")
  string(REPLACE " " ";" arguments ${planted})
  string(REPLACE " " "_" name cuda_host_device_comm_planted_${planted})
  add_test(NAME ${name} COMMAND bash ${CMAKE_CURRENT_LIST_DIR}/../comm/device_comm_planted.sh
                                $<TARGET_FILE:test_device_comm_gpu> ${arguments})
  set_tests_properties(${name} PROPERTIES TIMEOUT 200
    LABELS "cuda_host;comm" ENVIRONMENT "${nccl_host_environment}")
endforeach()

# Jobs whose device collectives go wrong: each case checks exit code, time and message.
add_executable(device_comm_faulty comm/device_comm_faulty.c)
tandem_loads_modules(device_comm_faulty)
add_dependencies(device_comm_faulty cuda_host_module nccl_host)
foreach(case none library_missing library_other init_fails init_blocks never_arrives async_error call_fails hang
             hang_one hang_alone disagree create_nccl create_staged still_nccl still_staged stop_nccl stop_staged
             kill_nccl kill_staged destroy_nccl device_nccl device_staged slow_nccl slow_staged)
  add_test(NAME cuda_host_device_comm_fault_${case}
           COMMAND bash ${CMAKE_CURRENT_LIST_DIR}/../comm/device_comm_faults.sh
                   $<TARGET_FILE:device_comm_faulty> ${case})
  set_tests_properties(cuda_host_device_comm_fault_${case} PROPERTIES TIMEOUT 60
    LABELS "cuda_host;comm;faults" ENVIRONMENT "${nccl_host_environment}")
endforeach()

# What the emulation cannot see is kept out of the sources.
add_test(NAME cuda_rules COMMAND bash ${CMAKE_SOURCE_DIR}/tests/cuda_rules.sh ${CMAKE_SOURCE_DIR})
set_tests_properties(cuda_rules PROPERTIES TIMEOUT 60 LABELS cuda_host)

# The emulation against CUDA's documentation, and against planted faults.
foreach(name primitives runtime graphs ptx cublaslt faults)
  set(source ${cuda_host}/selftest_${name}.cu)
  set_source_files_properties(${source} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++")
  tandem_test(cuda_host_${name} ${source} LIBS cuda_host_runtime LABELS cuda_host TIMEOUT 180)
endforeach()

# Plans of matrix products, which the operation cases cannot see.
set_source_files_properties(${cuda_host}/gemm.cu PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++")
tandem_test(cuda_host_gemm ${cuda_host}/gemm.cu LIBS cuda_host_backend LABELS cuda_host TIMEOUT 120)

tandem_script(cuda_host_quickstart 600 "cuda_host;slow" ${cuda_host}/quickstart.sh $<TARGET_FILE:tandem>
              $<TARGET_FILE:quickstart_chats> $<TARGET_FILE:cuda_host_module> $<TARGET_FILE:nccl_host>
              ${CMAKE_SOURCE_DIR})
tandem_script(cuda_host_bench 400 cuda_host ${cuda_host}/bench.sh $<TARGET_FILE:tandem>
              $<TARGET_FILE:cuda_host_module> ${CMAKE_SOURCE_DIR})
tandem_script(cuda_host_bad_gpu 600 cuda_host ${cuda_host}/bad_gpu.sh $<TARGET_FILE:tandem>
              $<TARGET_FILE:cuda_host_module> $<TARGET_FILE:nccl_host> $<TARGET_FILE:fake_gpu_module>
              ${CMAKE_SOURCE_DIR})

# Data races in kernels.
include(${cuda_host}/race.cmake)
