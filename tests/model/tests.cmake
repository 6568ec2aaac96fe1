foreach(name safetensors config rope lora adapter)
  tandem_test(model_${name} model/${name}.c LIBS tandem_model LABELS model)
endforeach()
tandem_test(model_base model/base.c LIBS tandem_model LABELS model)
