# The CUDA backend without a GPU: its sources compiled for the host against an emulation of the CUDA runtime.
set(cuda_host ${CMAKE_CURRENT_SOURCE_DIR}/cuda_host)
file(GLOB cuda_host_sources CONFIGURE_DEPENDS ${cuda_host}/runtime/*.cc ${cuda_host}/runtime/*.c)
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
target_compile_options(cuda_host_backend PRIVATE -O2 -fPIC)
