// Between the files of the report: text that grows.
#ifndef TANDEM_TRAIN_REPORT_TEXT_H
#define TANDEM_TRAIN_REPORT_TEXT_H

#include <stddef.h>

// Zero-initialise; `text` is the owner's to free. Without memory it stays as it is.
typedef struct td_report_text {
    char *text;
    size_t bytes, capacity;
    int is_out_of_memory;
} td_report_text;

void td_report_add(td_report_text *self, const char *text, size_t bytes);
void td_report_print(td_report_text *self, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
// Escaped as td_markdown_cell() does.
void td_report_add_cell(td_report_text *self, const char *text);

#endif
