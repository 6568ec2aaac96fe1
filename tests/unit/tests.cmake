foreach(name rng status_log tensor arena hash files json config pager)
  tandem_test(${name} unit/${name}.c LIBS tandem_core LABELS unit)
endforeach()
