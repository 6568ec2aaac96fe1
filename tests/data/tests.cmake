foreach(name tokenizer tokenizer_spm tokenizer_refusals bpe chat templates)
  tandem_test(${name} data/${name}.c LIBS tandem_model LABELS data)
endforeach()
foreach(name packing sampler store lines rows prepare)
  tandem_test(${name} data/${name}.c LIBS tandem_data LABELS data)
endforeach()
# Answers tests/reference/check_tokenizers.py.
add_executable(tokenizer_probe data/tokenizer_probe.c)
target_link_libraries(tokenizer_probe PRIVATE tandem_model)
# Answers tests/reference/check_templates.py.
add_executable(chat_probe data/chat_probe.c)
target_link_libraries(chat_probe PRIVATE tandem_model)
