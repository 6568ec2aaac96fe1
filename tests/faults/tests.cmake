# The program with the fault points of runtime/core/fault.h: the layers that have some, compiled once more. The released
# program has none of them.
foreach(layer tandem_core tandem_comm tandem_data tandem_train tandem)
  get_target_property(sources ${layer} SOURCES)
  list(APPEND faulty ${sources})
endforeach()
add_executable(tandem_faulty ${faulty})
target_include_directories(tandem_faulty PRIVATE ${CMAKE_SOURCE_DIR})
target_compile_definitions(tandem_faulty PRIVATE TANDEM_FAULTS)
target_link_libraries(tandem_faulty PRIVATE tandem_train) # for what the layers link; their own objects are all here already
set_target_properties(tandem_faulty PROPERTIES ENABLE_EXPORTS ON)

add_test(NAME faults_released
         COMMAND bash ${CMAKE_CURRENT_LIST_DIR}/released.sh $<TARGET_FILE:tandem> $<TARGET_FILE:tandem_faulty>)
set_tests_properties(faults_released PROPERTIES TIMEOUT 60 LABELS faults)

# Every case once; tests/faults/run.sh repeats them. And jobs of launch/slurm in a private Slurm.
file(GLOB cases CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/case_*.sh ${CMAKE_CURRENT_LIST_DIR}/slurm_*.sh)
list(FILTER cases EXCLUDE REGEX slurm_cluster)
foreach(case ${cases})
  get_filename_component(name ${case} NAME_WE)
  add_test(NAME faults_${name} COMMAND bash ${case} 1)
  set_tests_properties(faults_${name} PROPERTIES TIMEOUT 180 SKIP_RETURN_CODE 77 LABELS "faults;slow"
    ENVIRONMENT "FAULTS_PATIENCE=3;FAULTS_PROGRAM=$<TARGET_FILE:tandem_faulty>;FAULTS_CHATS=$<TARGET_FILE:quickstart_chats>;FAULTS_SOURCE=${CMAKE_SOURCE_DIR};FAULTS_CACHE=${CMAKE_CURRENT_BINARY_DIR}/faults_cache;FAULTS_GPU_MODULE=$<TARGET_FILE:cuda_host_module>")
endforeach()

# Links, pipes, names and damage in folders that others have filled, and the modes of what is made.
add_test(NAME faults_untrusted
         COMMAND bash ${CMAKE_CURRENT_LIST_DIR}/untrusted.sh $<TARGET_FILE:tandem> ${CMAKE_SOURCE_DIR})
set_tests_properties(faults_untrusted PROPERTIES TIMEOUT 180 LABELS faults)
