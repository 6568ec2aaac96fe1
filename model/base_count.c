#include "model/base_internal.h"

static td_status count_item(void *self, const td_base_item *item) {
    td_base_counts *counts = self;
    switch (item->kind) {
    case TD_BASE_EMBEDDING:
        counts->embedding += item->n_elements;
        break;
    case TD_BASE_HEAD:
        counts->head += item->n_elements;
        break;
    case TD_BASE_LINEAR:
        counts->projections[item->projection] += item->n_elements;
        break;
    case TD_BASE_BIAS:
        counts->biases += item->n_elements;
        break;
    default:
        counts->norms += item->n_elements;
    }
    counts->total += item->n_elements;
    return TD_OK;
}

void td_base_count(const td_model_config *config, td_base_counts *out) {
    *out = (td_base_counts){0};
    td_base_visit(config, count_item, out); // the visitor never fails
}
