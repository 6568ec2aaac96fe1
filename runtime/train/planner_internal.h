// The parts of the planner, for planner*.c.
#ifndef TANDEM_TRAIN_PLANNER_INTERNAL_H
#define TANDEM_TRAIN_PLANNER_INTERNAL_H

#include "runtime/train/planner.h"

// Needs planner->lora and planner->steps.
td_status td_planner_plan_memory(td_planner *planner);
// The number of the line with this name, or 0.
size_t td_planner_line_bytes(const td_memory_plan *plan, const char *name, td_memory_pool pool);

#endif
