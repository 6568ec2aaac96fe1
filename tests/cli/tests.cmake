# The program from outside, on the CPU where a GPU is at hand too; scripts for GPUs say which module they use.
# tandem_script(NAME TIMEOUT LABELS script arguments...)
function(tandem_script name timeout labels)
  add_test(NAME ${name} COMMAND bash ${ARGN})
  set_tests_properties(${name} PROPERTIES TIMEOUT ${timeout} LABELS "${labels}"
    ENVIRONMENT "OMPI_ALLOW_RUN_AS_ROOT=1;OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1;ASAN_OPTIONS=detect_leaks=0;TANDEM_GPU_MODULE=none")
endfunction()

set(cli ${CMAKE_CURRENT_LIST_DIR})
tandem_script(layers 60 cli ${CMAKE_SOURCE_DIR}/tests/layers.sh ${CMAKE_SOURCE_DIR})
tandem_script(cli_help 60 cli ${cli}/help.sh $<TARGET_FILE:tandem>)
tandem_script(cli_bad_input 600 cli ${cli}/bad_input.sh $<TARGET_FILE:tandem> ${CMAKE_SOURCE_DIR})
tandem_script(cli_same_bits 900 "cli;slow" ${cli}/same_bits.sh $<TARGET_FILE:tandem>
              $<TARGET_FILE:quickstart_chats> ${CMAKE_SOURCE_DIR})
tandem_script(cli_kill_rank 900 "cli;slow;faults" ${cli}/kill_rank.sh $<TARGET_FILE:tandem>
              $<TARGET_FILE:quickstart_chats> ${CMAKE_SOURCE_DIR})
if(NOT TANDEM_SANITIZE)
  tandem_script(cli_quickstart 900 "cli;slow" ${cli}/quickstart.sh ${CMAKE_SOURCE_DIR})
  tandem_script(cli_bundle 300 "cli;slow" ${cli}/bundle.sh ${CMAKE_BINARY_DIR} ${CMAKE_SOURCE_DIR})
endif()
tandem_script(cli_signals 300 "cli;faults" ${cli}/signals.sh $<TARGET_FILE:tandem>
              $<TARGET_FILE:quickstart_chats> ${CMAKE_SOURCE_DIR})
tandem_script(cli_prepare 300 cli ${cli}/prepare.sh $<TARGET_FILE:tandem> $<TARGET_FILE:quickstart_chats>
              ${CMAKE_SOURCE_DIR})
tandem_script(cli_answers 120 cli ${cli}/answers.sh $<TARGET_FILE:tandem> ${CMAKE_SOURCE_DIR})
tandem_script(cli_base_cache 300 cli ${cli}/base_cache.sh $<TARGET_FILE:tandem>
              $<TARGET_FILE:quickstart_chats> ${CMAKE_SOURCE_DIR})
tandem_script(cli_bench 240 cli ${cli}/bench.sh $<TARGET_FILE:tandem> ${CMAKE_SOURCE_DIR})
tandem_script(cli_plan 300 cli ${cli}/plan.sh $<TARGET_FILE:tandem> ${CMAKE_SOURCE_DIR})
tandem_script(cli_merge 300 cli ${cli}/merge.sh $<TARGET_FILE:tandem> ${CMAKE_SOURCE_DIR})
tandem_script(cli_compare 300 cli ${cli}/compare.sh $<TARGET_FILE:tandem> ${CMAKE_SOURCE_DIR})
tandem_script(cli_batch 300 cli ${cli}/batch.sh $<TARGET_FILE:tandem> ${CMAKE_SOURCE_DIR})
