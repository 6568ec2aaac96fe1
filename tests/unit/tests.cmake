foreach(name rng status_log tensor arena hash files json config pager)
  tandem_test(${name} unit/${name}.c LIBS tandem_core LABELS unit)
endforeach()

# Modules for the tests of the loader: a good one, one without the entry, and one whose library is not found.
function(tandem_fake_module name)
  add_library(${name} MODULE unit/fake_gpu_module.c)
  target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR})
  target_compile_definitions(${name} PRIVATE ${ARGN})
endfunction()
tandem_fake_module(fake_gpu_module FAKE_ENTRY)
tandem_fake_module(fake_gpu_module_without_entry)
tandem_fake_module(fake_gpu_module_without_library FAKE_ENTRY FAKE_NEEDS_A_LIBRARY)
add_library(absent_library SHARED unit/absent_library.c)
target_link_libraries(fake_gpu_module_without_library PRIVATE absent_library)
set_target_properties(fake_gpu_module_without_library PROPERTIES SKIP_BUILD_RPATH ON)
tandem_test(gpu_module unit/gpu_module.c LIBS tandem_core LABELS unit)
target_compile_definitions(test_gpu_module PRIVATE FAKE_MODULE="$<TARGET_FILE:fake_gpu_module>"
  FAKE_MODULE_WITHOUT_ENTRY="$<TARGET_FILE:fake_gpu_module_without_entry>"
  FAKE_MODULE_WITHOUT_LIBRARY="$<TARGET_FILE:fake_gpu_module_without_library>")
add_dependencies(test_gpu_module fake_gpu_module fake_gpu_module_without_entry
                 fake_gpu_module_without_library)
