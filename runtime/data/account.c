#include "runtime/data/account.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/core/json.h"
#include "runtime/data/lines.h"

enum { CHART_COLUMNS = 40 };

static const td_filter_reason reasons[TD_OUTCOME_FILTERED] = {
    [TD_OUTCOME_KEPT] = {NULL, NULL},
    [TD_OUTCOME_MALFORMED] = {"malformed", "malformed"},
    [TD_OUTCOME_TOO_LONG] = {"too_long", "longer than max_length"},
    [TD_OUTCOME_UNTRAINED] = {"untrained", "without a trained token"},
    [TD_OUTCOME_EXACT_DUPLICATE] = {"exact_duplicate", "exact duplicates of an earlier row"},
    [TD_OUTCOME_NEAR_DUPLICATE] = {"near_duplicate", "near duplicates of an earlier row"},
};

static const td_filter_reason *reason_of(td_outcome outcome) {
    if ((int)outcome < 0 || outcome >= TD_OUTCOMES)
        return &reasons[TD_OUTCOME_KEPT];
    return outcome < TD_OUTCOME_FILTERED ? &reasons[outcome]
                                         : &td_filter_reasons[outcome - TD_OUTCOME_FILTERED];
}

const char *td_outcome_name(td_outcome outcome) {
    return outcome == TD_OUTCOME_FILTERED ? NULL : reason_of(outcome)->name;
}

const char *td_outcome_text(td_outcome outcome) {
    return outcome == TD_OUTCOME_FILTERED ? NULL : reason_of(outcome)->text;
}

// "FOLDER/train.h5" -> "train"
static void name_store(const char *path, char *out, size_t room) {
    const char *slash = path ? strrchr(path, '/') : NULL;
    snprintf(out, room, "%s", slash ? slash + 1 : path ? path : "");
    char *dot = strrchr(out, '.');
    if (dot)
        *dot = '\0';
}

td_status td_account_init(td_prepare_account *account, const td_string_list *files,
                          const char *const stores[TD_SPLITS]) {
    *account = (td_prepare_account){0};
    for (int split = 0; split < TD_SPLITS; split++)
        name_store(stores[split], account->stores[split].name, sizeof account->stores[0].name);
    account->files = calloc((size_t)files->count, sizeof *account->files);
    if (!account->files)
        return td_fail(TD_ERR_MEMORY, "no memory for the account of %d files", files->count);
    for (int i = 0; i < files->count; i++) {
        account->files[i].path = strdup(files->items[i]);
        if (!account->files[i].path)
            return td_fail(TD_ERR_MEMORY, "no memory for the account of %d files", files->count);
        account->n_files++;
    }
    return TD_OK;
}

void td_account_fini(td_prepare_account *account) {
    for (int i = 0; i < account->n_files; i++)
        free(account->files[i].path);
    free(account->files);
    *account = (td_prepare_account){0};
}

td_outcome td_account_main_reason(const td_prepare_account *account) {
    td_outcome most = TD_OUTCOME_KEPT;
    for (int outcome = 1; outcome < TD_OUTCOMES; outcome++)
        if (account->dropped[outcome].rows > account->dropped[most].rows)
            most = (td_outcome)outcome;
    return most;
}

void td_account_where(const td_prepare_account *account, td_outcome outcome, char *out,
                      size_t room) {
    const td_dropped_rows *dropped = &account->dropped[outcome];
    out[0] = '\0';
    if (dropped->line > 0 && dropped->file < account->n_files)
        td_line_where(account->files[dropped->file].path, dropped->is_list, dropped->line, out,
                      room);
}

static int add_number(cJSON *object, const char *name, int64_t value) {
    return cJSON_AddNumberToObject(object, name, (double)value) != NULL;
}

static int add_dropped(const td_prepare_account *account, int is_short, cJSON *tree) {
    char where[TD_PATH_MAX + 32];
    cJSON *all = cJSON_AddObjectToObject(tree, "dropped");
    int done = all != NULL;
    for (int outcome = 1; outcome < TD_OUTCOMES && done; outcome++) {
        const td_dropped_rows *dropped = &account->dropped[outcome];
        if (dropped->rows == 0)
            continue;
        if (is_short) {
            done = add_number(all, td_outcome_name((td_outcome)outcome), dropped->rows);
            continue;
        }
        td_account_where(account, (td_outcome)outcome, where, sizeof where);
        cJSON *one = cJSON_AddObjectToObject(all, td_outcome_name((td_outcome)outcome));
        done = one && add_number(one, "rows", dropped->rows) &&
               cJSON_AddStringToObject(one, "example", where);
    }
    return done;
}

static int add_stores(const td_prepare_account *account, cJSON *tree) {
    cJSON *all = cJSON_AddObjectToObject(tree, "stores");
    int done = all != NULL;
    for (int split = 0; split < TD_SPLITS && done; split++) {
        const td_store_account_part *store = &account->stores[split];
        if (store->rows == 0)
            continue;
        cJSON *one = cJSON_AddObjectToObject(all, store->name);
        done = one && add_number(one, "rows", store->rows) &&
               add_number(one, "tokens", store->tokens) &&
               add_number(one, "trained_tokens", store->trained_tokens) &&
               add_number(one, "longest", store->longest);
    }
    return done;
}

static int add_files(const td_prepare_account *account, cJSON *tree) {
    cJSON *all = cJSON_AddArrayToObject(tree, "files");
    int done = all != NULL;
    for (int i = 0; i < account->n_files && done; i++) {
        const td_file_account *file = &account->files[i];
        cJSON *one = cJSON_CreateObject();
        done = one && cJSON_AddItemToArray(all, one) &&
               cJSON_AddStringToObject(one, "path", file->path) &&
               add_number(one, "rows_read", file->rows_read) &&
               add_number(one, "rows_kept", file->rows_kept);
    }
    return done;
}

static int add_lengths(const td_prepare_account *account, cJSON *tree) {
    const td_histogram *lengths = &account->lengths;
    td_histogram_bar bars[TD_HISTOGRAM_MAX_BARS];
    int n = td_histogram_bars(lengths, bars);
    cJSON *all = cJSON_AddObjectToObject(tree, "lengths");
    int done = all && add_number(all, "rows", lengths->n) &&
               add_number(all, "p50", td_histogram_quantile(lengths, 0.5)) &&
               add_number(all, "p90", td_histogram_quantile(lengths, 0.9)) &&
               add_number(all, "p99", td_histogram_quantile(lengths, 0.99)) &&
               add_number(all, "longest", lengths->longest);
    cJSON *list = done ? cJSON_AddArrayToObject(all, "histogram") : NULL;
    done = list != NULL;
    for (int i = 0; i < n && done; i++) {
        cJSON *one = cJSON_CreateObject();
        done = one && cJSON_AddItemToArray(list, one) && add_number(one, "from", bars[i].from) &&
               add_number(one, "to", bars[i].to) && add_number(one, "rows", bars[i].rows);
    }
    return done;
}

td_status td_account_to_json(const td_prepare_account *account, int is_short, char **out) {
    cJSON *tree = cJSON_CreateObject();
    int done = tree && add_number(tree, "rows_read", account->rows_read) &&
               add_number(tree, "rows_kept", account->rows_kept) &&
               add_number(tree, "rows_truncated", account->rows_truncated) &&
               add_number(tree, "tokens", account->tokens) &&
               add_number(tree, "trained_tokens", account->trained_tokens) &&
               add_dropped(account, is_short, tree);
    if (done && !is_short)
        done = add_stores(account, tree) && add_files(account, tree) && add_lengths(account, tree);
    *out = done ? td_json_print(tree, !is_short) : NULL;
    cJSON_Delete(tree);
    return *out ? TD_OK : td_fail(TD_ERR_MEMORY, "no memory for the account of the rows");
}

static void print_dropped(const td_prepare_account *account, FILE *out) {
    char where[TD_PATH_MAX + 32];
    for (int outcome = 1; outcome < TD_OUTCOMES; outcome++) {
        if (account->dropped[outcome].rows == 0)
            continue;
        td_account_where(account, (td_outcome)outcome, where, sizeof where);
        fprintf(out, "  %12lld dropped: %s (first: %s)\n",
                (long long)account->dropped[outcome].rows, td_outcome_text((td_outcome)outcome),
                where);
    }
    if (account->rows_truncated > 0)
        fprintf(out, "  %12lld truncated to max_length\n", (long long)account->rows_truncated);
}

static void print_chart(const td_histogram *lengths, FILE *out) {
    td_histogram_bar bars[TD_HISTOGRAM_MAX_BARS];
    int n = td_histogram_bars(lengths, bars);
    int64_t most = 1;
    for (int i = 0; i < n; i++)
        most = bars[i].rows > most ? bars[i].rows : most;
    fprintf(out,
            "tokens per row, before max_length: half have at most %lld, 90 %% %lld, 99 %% "
            "%lld; the longest has %lld\n",
            (long long)td_histogram_quantile(lengths, 0.5),
            (long long)td_histogram_quantile(lengths, 0.9),
            (long long)td_histogram_quantile(lengths, 0.99), (long long)lengths->longest);
    for (int i = 0; i < n; i++) {
        // A bar that is not empty shows.
        int columns = (int)((bars[i].rows * CHART_COLUMNS + most - 1) / most);
        fprintf(out, "  %8lld to %-8lld %-*.*s %lld\n", (long long)bars[i].from,
                (long long)bars[i].to, CHART_COLUMNS, columns,
                "########################################", (long long)bars[i].rows);
    }
}

void td_account_print(const td_prepare_account *account, FILE *out) {
    fprintf(out, "rows read  %12lld from %d file%s\n", (long long)account->rows_read,
            account->n_files, account->n_files == 1 ? "" : "s");
    print_dropped(account, out);
    for (int split = 0; split < TD_SPLITS; split++) {
        const td_store_account_part *store = &account->stores[split];
        if (store->rows > 0)
            fprintf(out, "%-10s %12lld rows, %lld tokens, %lld trained\n", store->name,
                    (long long)store->rows, (long long)store->tokens,
                    (long long)store->trained_tokens);
    }
    if (account->lengths.n > 0)
        print_chart(&account->lengths, out);
}
