// Between telling the format of a row (rows_format.c), instruction rows (rows_instruction.c), texts
// (rows_texts.c) and the row as a whole (rows.c). Trees are the row's.
#ifndef TANDEM_DATA_ROWS_INTERNAL_H
#define TANDEM_DATA_ROWS_INTERNAL_H

#include <cjson/cJSON.h>

#include "runtime/data/rows.h"

typedef enum td_row_format {
    TD_ROW_IDS,
    TD_ROW_MESSAGES,
    TD_ROW_CONVERSATIONS,
    TD_ROW_COMPLETION, // prompt and completion
    TD_ROW_INSTRUCTION,
    TD_ROW_TEXT,
} td_row_format;

// The item, or NULL when it is missing or null.
const cJSON *td_row_get(const cJSON *object, const char *key);

// TD_ERR_DATA for no format, and for several unless one of them decides: "input_ids" always does,
// and a "text" that only repeats what the other keys say is passed over.
td_status td_row_find_format(const char *where, const cJSON *object, td_row_format *out);

// A row of instruction, input and output. Strings are the tree's.
typedef struct td_instruction {
    const char *instruction, *input, *output; // input: "" when there is none
    const char *system;                       // NULL: none
    const cJSON *history;                     // list of [user, assistant], or NULL
} td_instruction;
td_status td_instruction_read(const char *where, const cJSON *object, td_instruction *out);
// As a row of messages, with what else the row says for the template. The caller deletes it.
td_status td_instruction_messages(const char *where, const cJSON *object, cJSON **out);
// As Stanford's Alpaca words it, for models without a chat template. The caller frees.
td_status td_instruction_prompt(const char *where, const td_instruction *row, char **out);

// Of a row that td_row_read() accepts, which is needed for token ids.
td_status td_row_texts_read(const td_tokenizer *tokenizer, const char *where, td_row_format format,
                            const cJSON *object, const td_row *row, td_row_texts *out);

#endif
