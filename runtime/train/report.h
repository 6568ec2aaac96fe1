// A comparison as a Markdown report, as the tables of it, and as JSON.
#ifndef TANDEM_TRAIN_REPORT_H
#define TANDEM_TRAIN_REPORT_H

#include "runtime/train/comparison.h"

// What was compared; all by reference.
typedef struct td_report_subject {
    const td_session *session;
    const td_comparison *comparison;
    const td_comparison_options *options;
} td_report_subject;

// Local. NUL-terminated Markdown; the caller frees. Everything that comes from data or from the
// models is escaped. `with_details`: settings, fingerprints and samples as well as the results.
td_status td_report_markdown(const td_report_subject *subject, int with_details, char **out);
// Local. One JSON object; the caller frees.
td_status td_report_json(const td_report_subject *subject, char **out);

// Text for one cell of a table, on one line: no character of it means anything to Markdown or
// HTML, line ends become "<br>", and what cannot be seen or changes the direction of writing is
// shown as its number. The caller frees; NULL without memory.
char *td_markdown_cell(const char *text);

#endif
