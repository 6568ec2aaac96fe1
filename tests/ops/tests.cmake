# One list of operation cases for every backend; test_ops runs it on the CPU's.
set(op_frame ops/frame.c ops/frame_buffers.c ops/matrix_case.c ops/reference.c)
file(GLOB op_cases CONFIGURE_DEPENDS RELATIVE ${CMAKE_CURRENT_SOURCE_DIR}
     ${CMAKE_CURRENT_SOURCE_DIR}/ops/cases_*.c ${CMAKE_CURRENT_SOURCE_DIR}/ops/reference_*.c)
tandem_test(ops "ops/test_ops.c;${op_frame};${op_cases}" LIBS tandem_kernels TIMEOUT 300 LABELS ops)
add_test(NAME ops_medium COMMAND test_ops medium)
set_tests_properties(ops_medium PROPERTIES TIMEOUT 300 LABELS ops ENVIRONMENT OMP_NUM_THREADS=1)
tandem_test(ops_table ops/test_ops_table.c LIBS tandem_kernels LABELS ops)
tandem_test(medium ops/test_medium.c LIBS tandem_kernels LABELS ops)
tandem_test(linear_bf16 ops/test_linear_bf16.c LIBS tandem_kernels LABELS ops)
tandem_test(vectors ops/test_vectors.c LIBS tandem_kernels LABELS ops)
tandem_test(attention_bits ops/test_attention_bits.c LIBS tandem_kernels LABELS ops)
tandem_test(nf4_fixtures ops/test_nf4_fixtures.c LIBS tandem_model LABELS ops)
tandem_gpu_test(ops_gpu "ops/test_ops_gpu.c;${op_frame};${op_cases}" LIBS tandem_kernels CASES bf16 fp32 TIMEOUT 900)
