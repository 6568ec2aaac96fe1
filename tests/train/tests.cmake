tandem_test(checkpoint_manifest train/checkpoint_manifest.c LIBS tandem_train LABELS train)
tandem_test(checkpoint_save train/checkpoint_save.c LIBS tandem_train RANKS 1 2 3 10 LABELS train)
tandem_test(checkpoint_damage train/checkpoint_damage.c LIBS tandem_train RANKS 1 2 3 LABELS train)
tandem_test(checkpoint_kill train/checkpoint_kill.c LIBS tandem_train LABELS train faults)

# Saved on one number of ranks, resumed on another.
add_executable(checkpoint_ranks train/checkpoint_ranks.c)
target_include_directories(checkpoint_ranks PRIVATE ${CMAKE_SOURCE_DIR}/tests)
target_link_libraries(checkpoint_ranks PRIVATE tandem_train)
foreach(pair "4;2" "2;4" "4;1" "1;3" "3;10")
  list(GET pair 0 from)
  list(GET pair 1 to)
  add_test(NAME checkpoint_ranks_${from}_to_${to}
           COMMAND bash ${CMAKE_CURRENT_LIST_DIR}/checkpoint_ranks.sh
                   $<TARGET_FILE:checkpoint_ranks> ${from} ${to})
  set_tests_properties(checkpoint_ranks_${from}_to_${to} PROPERTIES TIMEOUT 120 LABELS train
    ENVIRONMENT "OMPI_ALLOW_RUN_AS_ROOT=1;OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1;OMP_NUM_THREADS=1;ASAN_OPTIONS=detect_leaks=0")
endforeach()
tandem_test(train100 train/train100.c LIBS tandem_train TIMEOUT 120 LABELS train)
add_test(NAME train100_medium COMMAND test_train100 medium)
set_tests_properties(train100_medium PROPERTIES TIMEOUT 120 LABELS train ENVIRONMENT OMP_NUM_THREADS=1)
tandem_gpu_test(train100_gpu train/train100.c LIBS tandem_train CASES fp32 bf16 TIMEOUT 300)
tandem_test(bench_ops train/bench_ops.c LIBS tandem_train LABELS train)
tandem_test(bench_flops train/bench_flops.c LIBS tandem_train LABELS train)
tandem_test(profiler_ranges train/profiler_ranges.c LIBS tandem_train LABELS train)
tandem_test(schedule train/schedule.c LIBS tandem_train LABELS train)
tandem_test(threads train/threads.c LIBS tandem_train TIMEOUT 120 LABELS train)
tandem_test(step train/step.c LIBS tandem_train RANKS 1 2 3 TIMEOUT 120 LABELS train)
tandem_test(memory_plan train/memory_plan.c LIBS tandem_train RANKS 1 2 LABELS train)
tandem_test(planner train/planner.c LIBS tandem_train RANKS 1 2 3 LABELS train)
tandem_gpu_test(gpu_plan train/gpu_plan.c LIBS tandem_train)
tandem_gpu_test(gpu_planner train/gpu_planner.c LIBS tandem_train)
tandem_gpu_test(gpu_copies train/gpu_copies.c LIBS tandem_train)
add_test(NAME cuda_host_gpu_plan_2ranks
         COMMAND mpirun -q --oversubscribe -n 2 $<TARGET_FILE:test_gpu_plan>)
set_tests_properties(cuda_host_gpu_plan_2ranks PROPERTIES TIMEOUT 60 LABELS cuda_host
  ENVIRONMENT "${cuda_host_environment};ASAN_OPTIONS=detect_leaks=0")
tandem_test(question train/question.c LIBS tandem_train RANKS 1 2 3 LABELS train)
tandem_test(report train/report.c LIBS tandem_train LABELS train)
