tandem_test(comm_bootstrap comm/bootstrap.c LIBS tandem_comm LABELS comm)
tandem_test(comm_board comm/board.c LIBS tandem_comm LABELS comm)
tandem_test(comm_collectives comm/collectives.c LIBS tandem_comm RANKS 1 2 3 4 LABELS comm)
tandem_test(comm_async comm/async.c LIBS tandem_comm RANKS 1 2 3 4 LABELS comm)
tandem_test(comm_agree comm/agree.c LIBS tandem_comm RANKS 1 2 3 4 LABELS comm)
tandem_test(comm_buckets comm/buckets.c LIBS tandem_comm RANKS 1 2 3 4 LABELS comm)
tandem_test(comm_device_comm comm/device_comm.c LIBS tandem_comm RANKS 1 2 3 LABELS comm)

# Jobs that go wrong: each case checks exit code, time and message.
add_executable(faulty comm/faulty.c)
target_link_libraries(faulty PRIVATE tandem_comm)
foreach(case none still stop stop_first kill kill_without_cleanup leave skip skip_to_longer skip_alike finish_early
             slow nap abort abort_together abort_without_cleanup abort_in_thread alone absent launcher stuck)
  add_test(NAME comm_fault_${case}
           COMMAND bash ${CMAKE_CURRENT_LIST_DIR}/faults.sh $<TARGET_FILE:faulty> ${case})
  set_tests_properties(comm_fault_${case} PROPERTIES TIMEOUT 60 LABELS "comm;faults")
endforeach()
