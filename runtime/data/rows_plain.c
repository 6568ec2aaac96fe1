// Instruction rows as the rows that they stand for.
#include <stdlib.h>

#include "runtime/core/json.h"
#include "runtime/data/rows_internal.h"

static int has_answer(const cJSON *object) {
    return td_row_get(object, "output") || td_row_get(object, "response");
}

// As preparation tells it (rows_format.c). Without an answer any other key decides.
static int is_instruction(const cJSON *object) {
    static const char *const others[] = {"input_ids", "messages", "conversations", "completion"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (td_row_get(object, others[i]))
            return 0;
    return td_row_get(object, "instruction") &&
           (has_answer(object) || !(td_row_get(object, "prompt") || td_row_get(object, "text")));
}

static td_status as_chat(const char *where, const cJSON *object, cJSON **out) {
    TD_TRY(td_instruction_messages(where, object, out));
    cJSON *messages = cJSON_GetObjectItemCaseSensitive(*out, "messages");
    if (!has_answer(object))
        cJSON_DeleteItemFromArray(messages, cJSON_GetArraySize(messages) - 1);
    return TD_OK;
}

static td_status as_prompt(const char *where, const cJSON *object, cJSON **out) {
    td_instruction row;
    char *prompt = NULL;
    TD_TRY(td_instruction_read(where, object, &row));
    TD_TRY(td_instruction_prompt(where, &row, &prompt));
    cJSON *made = cJSON_CreateObject();
    int ok = made && cJSON_AddStringToObject(made, "prompt", prompt) &&
             (!has_answer(object) || cJSON_AddStringToObject(made, "completion", row.output));
    free(prompt);
    if (!ok) {
        cJSON_Delete(made);
        return td_fail(TD_ERR_MEMORY, "%s: no memory for its text", where);
    }
    *out = made;
    return TD_OK;
}

td_status td_row_as_plain(const char *where, const cJSON *object, int as_messages, char **out) {
    cJSON *row;
    *out = NULL;
    if (!is_instruction(object))
        return TD_OK;
    TD_TRY(as_messages ? as_chat(where, object, &row) : as_prompt(where, object, &row));
    *out = td_json_print(row, 0);
    cJSON_Delete(row);
    return *out ? TD_OK : td_fail(TD_ERR_MEMORY, "%s: no memory for it", where);
}
