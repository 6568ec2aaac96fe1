foreach(name safetensors config rope lora adapter nf4_folder merge multimodal)
  tandem_test(model_${name} model/${name}.c LIBS tandem_model LABELS model)
endforeach()
tandem_test(model_base model/base.c LIBS tandem_model LABELS model)
tandem_test(model_base_image model/base_image.c LIBS tandem_model LABELS model)
tandem_test(families "model/families.c;model/families_checks.c" LIBS tandem_model TIMEOUT 120 LABELS model)

# For tests/reference/check_adapter.py, which needs Python and is run by hand.
add_executable(adapter_logits model/adapter_logits.c)
target_link_libraries(adapter_logits PRIVATE tandem_model)
tandem_test(generate model/generate.c LIBS tandem_model LABELS model)
tandem_test(quickstart_base model/quickstart_base.c LIBS tandem_model LABELS model)
tandem_test(dropout model/dropout.c LIBS tandem_model LABELS model)
