// The parts of cases_optimizer().
#ifndef TANDEM_TESTS_OPS_CASES_OPTIMIZER_H
#define TANDEM_TESTS_OPS_CASES_OPTIMIZER_H

#include "ops/case.h"

void cases_adamw(op_run *run);

#endif
