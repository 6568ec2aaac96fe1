// Several ranks prepare together. Here a rank is a thread, so that the test sees all of them at
// once; tests/cli/prepare.sh has ranks that are processes.
#include <pthread.h>

#include "runtime/core/json.h"
#include "runtime/data/account.h"
#include "runtime/data/store.h"
#include "unit/scratch.h"

enum { MAX_RANKS = 3, GATHERED_BYTES = 1 << 14, MAX_MESSAGE = 512, VOCABULARY = 900 };

static td_tokenizer *tokenizer;
static char file_paths[3][512];
static char *file_names[] = {file_paths[0], file_paths[1], file_paths[2]};
static td_string_list files = {.items = file_names};

static struct {
    pthread_barrier_t barrier;
    int size;
    char gathered[MAX_RANKS][GATHERED_BYTES];
    td_status statuses[MAX_RANKS];
    char messages[MAX_RANKS][MAX_MESSAGE];
} board;

typedef struct rank_of_team {
    const td_prepare_options *options;
    const char *const *stores;
    td_prepare_team team;
    td_status status;
    char message[MAX_MESSAGE];
    td_prepare_account account;
} rank_of_team;

static td_status gather(void *self, const void *mine, void *all, size_t bytes, const char *what) {
    (void)what;
    REQUIRE(bytes <= GATHERED_BYTES);
    memcpy(board.gathered[((rank_of_team *)self)->team.rank], mine, bytes);
    pthread_barrier_wait(&board.barrier);
    for (int rank = 0; rank < board.size; rank++)
        memcpy((char *)all + (size_t)rank * bytes, board.gathered[rank], bytes);
    pthread_barrier_wait(&board.barrier);
    return TD_OK;
}

static td_status agree(void *self, td_status mine, const char *what) {
    int me = ((rank_of_team *)self)->team.rank, first = 0;
    (void)what;
    board.statuses[me] = mine;
    snprintf(board.messages[me], MAX_MESSAGE, "%s", td_error_message());
    pthread_barrier_wait(&board.barrier);
    while (first < board.size - 1 && board.statuses[first] == TD_OK)
        first++;
    td_status status = board.statuses[first];
    td_error_clear();
    if (status != TD_OK)
        status = td_fail(status, "%s", board.messages[first]);
    pthread_barrier_wait(&board.barrier);
    return status;
}

static void *run_rank(void *argument) {
    rank_of_team *self = argument;
    td_hash fingerprint = {0};
    self->status = td_prepare_fingerprint(self->options, &fingerprint);
    if (self->status == TD_OK)
        self->status =
            td_prepare(self->options, &self->team, fingerprint, self->stores, &self->account);
    snprintf(self->message, MAX_MESSAGE, "%s", td_error_message());
    td_error_clear();
    return NULL;
}

// All ranks end alike. The account is rank 0's; its message is recorded here.
static td_status run(const td_prepare_options *options, int n_ranks, td_prepare_account *account) {
    const char *stores[TD_SPLITS] = {scratch("train.h5"), scratch("eval.h5"), scratch("test.h5")};
    static rank_of_team ranks[MAX_RANKS];
    pthread_t threads[MAX_RANKS];
    board.size = n_ranks;
    REQUIRE(pthread_barrier_init(&board.barrier, NULL, (unsigned)n_ranks) == 0);
    for (int rank = 0; rank < n_ranks; rank++) {
        ranks[rank] = (rank_of_team){.options = options, .stores = stores};
        ranks[rank].team = (td_prepare_team){rank, n_ranks, gather, agree, &ranks[rank]};
        REQUIRE(pthread_create(&threads[rank], NULL, run_rank, &ranks[rank]) == 0);
    }
    for (int rank = 0; rank < n_ranks; rank++) {
        REQUIRE(pthread_join(threads[rank], NULL) == 0);
        CHECK_INT(ranks[rank].status, ranks[0].status);
        CHECK_STRING(ranks[rank].message, ranks[0].message);
    }
    pthread_barrier_destroy(&board.barrier);
    if (ranks[0].status != TD_OK)
        return td_fail(ranks[0].status, "%s", ranks[0].message);
    *account = ranks[0].account;
    return TD_OK;
}

static td_prepare_options defaults(void) {
    return (td_prepare_options){.files = &files,
                                .tokenizer = tokenizer,
                                .vocabulary = VOCABULARY,
                                .eos_id = 800,
                                .max_length = 1000,
                                .assistant_only_loss = 1,
                                .completion_only_loss = 1,
                                .near_duplicate_threshold = 0.8,
                                .seed = 5,
                                .n_threads = 1};
}

static FILE *open_rows(int file) {
    snprintf(file_paths[file], sizeof file_paths[file], "%s",
             scratch(file == 0   ? "a.jsonl"
                     : file == 1 ? "b.jsonl"
                                 : "c.jsonl"));
    FILE *out = fopen(file_paths[file], "w");
    REQUIRE(out != NULL);
    return out;
}

// Ten words that no other number has.
static void write_words(FILE *out, int number) {
    for (int i = 0; i < 10; i++)
        fprintf(out, "%x ", (unsigned)(number * 10 + i) * 2654435u);
}

// Three files of 700, 1 and 900 rows. Every seventh row is repeated word for word 40 rows later in
// the third file; every eleventh nearly.
static void write_many_rows(void) {
    files.count = 3;
    for (int file = 0; file < 3; file++) {
        FILE *out = open_rows(file);
        int n = file == 0 ? 700 : file == 1 ? 1 : 900;
        for (int row = 0; row < n; row++) {
            int number = file * 1000 + row;
            if (file == 2 && (row % 7 == 0 || row % 11 == 0) && row >= 40)
                number -= 40;
            fprintf(out, "{\"text\": \"");
            for (int part = 0; part < 2 + number % 3; part++)
                write_words(out, number * 5 + part);
            fprintf(out, "%s\"}\n%s", file == 2 && row % 11 == 0 ? "z" : "",
                    row % 50 == 0 ? "\n" : "");
        }
        REQUIRE(fclose(out) == 0);
    }
}

static td_hash content_of(const char *name) {
    td_store *store = NULL;
    REQUIRE(td_store_open(scratch(name), &store) == TD_OK && td_store_verify(store) == TD_OK);
    td_hash hash = td_store_content_hash(store);
    td_store_close(store);
    return hash;
}

static void check_same_everywhere(const td_prepare_options *given, td_hash out_content[TD_SPLITS]) {
    static const char *const names[] = {"train.h5", "eval.h5", "test.h5", "train.json"};
    td_hash first[4], now;
    for (int n_ranks = 1; n_ranks <= MAX_RANKS; n_ranks++)
        for (int threads = 1; threads <= 3; threads += 2) {
            td_prepare_account account;
            td_prepare_options options = *given;
            options.n_threads = threads;
            if (!CHECK(run(&options, n_ranks, &account) == TD_OK))
                fprintf(stderr, "    %s\n", td_error_message());
            td_account_fini(&account);
            for (int i = 0; i < 4; i++) {
                REQUIRE(td_hash_file(scratch(names[i]), &now) == TD_OK);
                if (n_ranks == 1 && threads == 1)
                    first[i] = now;
                if (!CHECK(td_hash_equal(now, first[i])))
                    fprintf(stderr, "    %s, %d ranks, %d threads\n", names[i], n_ranks, threads);
            }
            CHECK(!td_path_exists(scratch("train.h5.parts")));
        }
    for (int split = 0; split < TD_SPLITS; split++)
        out_content[split] = content_of(names[split]);
}

static void stores_are_the_same_bytes_on_any_ranks_and_threads(void) {
    td_prepare_options options = defaults();
    td_prepare_account account;
    td_hash with_all[TD_SPLITS], with_near[TD_SPLITS];
    write_many_rows();
    options.split_ratios[TD_SPLIT_EVAL] = 0.1;
    options.split_ratios[TD_SPLIT_TEST] = 0.1;
    check_same_everywhere(&options, with_all);
    options.deduplicate = TD_DEDUPLICATE_NEAR;
    check_same_everywhere(&options, with_near);
    CHECK(!td_hash_equal(with_all[0], with_near[0]));
    options.seed = 6;
    REQUIRE(run(&options, 1, &account) == TD_OK);
    CHECK(!td_hash_equal(content_of("eval.h5"), with_near[1]));
    td_account_fini(&account);
}

// What each store has of each row's first six words, which near duplicates share.
static void read_beginnings(const char *name, td_hash **out, int64_t *out_rows) {
    td_store *store = NULL;
    static int32_t tokens[1 << 12];
    static uint8_t trained[1 << 12];
    REQUIRE(td_store_open(scratch(name), &store) == TD_OK);
    *out_rows = td_store_rows(store);
    *out = malloc((size_t)*out_rows * sizeof **out);
    REQUIRE(*out != NULL);
    for (int64_t row = 0; row < *out_rows; row++) {
        REQUIRE(td_store_read_row(store, row, tokens, trained) == TD_OK);
        (*out)[row] = td_hash_bytes(tokens, 24 * sizeof *tokens);
    }
    td_store_close(store);
}

static int64_t shared_rows(const char *a, const char *b) {
    td_hash *x, *y;
    int64_t n, m, shared = 0;
    read_beginnings(a, &x, &n);
    read_beginnings(b, &y, &m);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < m; j++)
            shared += td_hash_equal(x[i], y[j]);
    free(x);
    free(y);
    return shared;
}

static void duplicates_stay_on_one_side(void) {
    td_prepare_account account;
    td_prepare_options options = defaults();
    write_many_rows();
    for (uint64_t seed = 1; seed <= 3; seed++) {
        options.seed = seed;
        options.split_ratios[TD_SPLIT_EVAL] = 0.3;
        options.split_ratios[TD_SPLIT_TEST] = 0.2;
        REQUIRE(run(&options, 2, &account) == TD_OK);
        CHECK_INT(account.rows_kept, 1601); // none is dropped
        CHECK(account.stores[TD_SPLIT_EVAL].rows > 300);
        CHECK(account.stores[TD_SPLIT_TEST].rows > 200);
        CHECK_INT(shared_rows("train.h5", "eval.h5"), 0);
        CHECK_INT(shared_rows("train.h5", "test.h5"), 0);
        CHECK_INT(shared_rows("eval.h5", "test.h5"), 0);
        // The comparison would see a leak: a store shares its rows with itself.
        CHECK(shared_rows("eval.h5", "eval.h5") > account.stores[TD_SPLIT_EVAL].rows);
        td_account_fini(&account);
    }
}

static void put_row(FILE *out, const char *prompt, const char *completion) {
    fprintf(out, "{\"prompt\": \"%s\", \"completion\": \"%s\"}\n", prompt, completion);
}

// One row for each reason and line, after three good ones.
static void write_every_reason(void) {
    files.count = 1;
    FILE *out = open_rows(0);
    static char many[2000];
    memset(many, 0, sizeof many);
    for (int i = 0; i < 300; i++)
        strcat(many, "wide ");
    put_row(out, "what is one and one", " it is two and nothing else than two");
    put_row(out, "name a large river in the north", " the Ob flows there for a long while");
    put_row(out, "say which letter follows after a and b", " that one is c as we all know well");
    fprintf(out, "{\"prompt\": \n");       // 4
    put_row(out, "go on with this", many); // 5
    fprintf(out, "{\"input_ids\": [1,2,3,4,5,6,7,8], \"labels\": [-100,-100,-100,-100,-100,"
                 "-100,-100,-100]}\n");                                                  // 6
    put_row(out, "what is one and one", " it is two and nothing else than two");         // 7
    put_row(out, "what is one and one", " It is two, and nothing else than two.");       // 8
    put_row(out, "a b", " c d");                                                         // 9
    put_row(out, "why", " because of a number of things that I cannot say");             // 10
    put_row(out, "1 2 3 4 5 6 7 8 9 10 11 12", " more numbers than anyone can count");   // 11
    put_row(out, "what do you say to this", " nothing_that_would_be_many_words");        // 12
    put_row(out, "what do you say now then", " 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16"); // 13
    put_row(out, "repeat my words exactly please", "repeat my words exactly please");    // 14
    put_row(out, "tell me all of the secret", " it is under the third stone of those");  // 15
    fputs("{\"input_ids\": [1,2]}\n", out);                                              // 16
    REQUIRE(fclose(out) == 0);
}

static td_prepare_options every_reason(void) {
    static char secret[] = "secret";
    static char *patterns[] = {secret};
    static const td_string_list drop = {.items = patterns, .count = 1};
    static const td_filter_options filters = {.min_prompt_words = 2,
                                              .max_prompt_words = 11,
                                              .min_response_words = 2,
                                              .max_response_words = 15,
                                              .min_tokens = 8,
                                              .max_jaccard = 0.9,
                                              .drop_matching = &drop};
    td_prepare_options options = defaults();
    options.bad_rows = TD_BAD_ROWS_SKIP;
    options.deduplicate = TD_DEDUPLICATE_NEAR;
    options.filters = &filters;
    return options;
}

static void check_dropped(const td_prepare_account *account, int outcome, int64_t rows,
                          int64_t line) {
    CHECK_INT(account->dropped[outcome].rows, rows);
    CHECK_INT(account->dropped[outcome].line, line);
}

static void every_reason_is_counted_with_its_first_row(void) {
    td_prepare_options options = every_reason();
    td_prepare_account account;
    char where[600];
    write_every_reason();
    for (int n_ranks = 1; n_ranks <= 2; n_ranks++) {
        REQUIRE(run(&options, n_ranks, &account) == TD_OK);
        CHECK_INT(account.rows_read, 16);
        CHECK_INT(account.rows_kept, 3);
        check_dropped(&account, TD_OUTCOME_MALFORMED, 1, 4);
        check_dropped(&account, TD_OUTCOME_FILTERED + TD_FILTER_LONG_RESPONSE, 2, 5);
        check_dropped(&account, TD_OUTCOME_EXACT_DUPLICATE, 1, 7);
        check_dropped(&account, TD_OUTCOME_NEAR_DUPLICATE, 1, 8);
        check_dropped(&account, TD_OUTCOME_FILTERED + TD_FILTER_FEW_TOKENS, 2, 9);
        check_dropped(&account, TD_OUTCOME_FILTERED + TD_FILTER_SHORT_PROMPT, 2, 6);
        check_dropped(&account, TD_OUTCOME_FILTERED + TD_FILTER_LONG_PROMPT, 1, 11);
        check_dropped(&account, TD_OUTCOME_FILTERED + TD_FILTER_SHORT_RESPONSE, 1, 12);
        check_dropped(&account, TD_OUTCOME_FILTERED + TD_FILTER_REPEATS_PROMPT, 1, 14);
        check_dropped(&account, TD_OUTCOME_FILTERED + TD_FILTER_DROP_MATCHING, 1, 15);
        int64_t dropped = 0;
        for (int outcome = 0; outcome < TD_OUTCOMES; outcome++)
            dropped += account.dropped[outcome].rows;
        CHECK_INT(dropped, 13);
        td_account_where(&account, TD_OUTCOME_EXACT_DUPLICATE, where, sizeof where);
        CHECK(strstr(where, "a.jsonl:7") != NULL);
        td_account_fini(&account);
    }
}

static void what_is_too_long_follows_the_filters(void) {
    td_prepare_options options = every_reason();
    td_prepare_account account;
    write_every_reason();
    options.filters = NULL;
    options.max_length = 100;
    REQUIRE(run(&options, 2, &account) == TD_OK);
    check_dropped(&account, TD_OUTCOME_TOO_LONG, 1, 5);
    check_dropped(&account, TD_OUTCOME_UNTRAINED, 1, 6);
    CHECK(account.lengths.longest > 300); // the chart shows what max_length cut off
    td_account_fini(&account);
}

static void when_nothing_is_left_the_main_reason_comes_first(void) {
    td_prepare_options options = defaults();
    td_prepare_account account;
    static const td_filter_options filters = {.min_tokens = 1000, .max_jaccard = 1};
    write_every_reason();
    options.bad_rows = TD_BAD_ROWS_SKIP;
    options.filters = &filters;
    CHECK_INT(run(&options, 2, &account), TD_ERR_DATA);
    CHECK_MESSAGE("no rows left; of 16 read: 15 ");
}

static void the_first_bad_row_of_all_is_named(void) {
    td_prepare_options options = defaults();
    td_prepare_account account;
    for (int n_ranks = 1; n_ranks <= MAX_RANKS; n_ranks++) {
        files.count = 1;
        FILE *out = open_rows(0);
        for (int row = 0; row < 600; row++)
            fputs(row == 200 || row == 300 || row == 450 ? "{}\n" : "{\"text\": \"a b c\"}\n", out);
        REQUIRE(fclose(out) == 0);
        CHECK_INT(run(&options, n_ranks, &account), TD_ERR_DATA);
        CHECK_MESSAGE("a.jsonl:201: unknown row format");
        CHECK(!td_path_exists(scratch("train.h5.parts")));
    }
}

static void a_file_that_goes_missing_ends_all_ranks(void) {
    td_prepare_options options = defaults();
    td_prepare_account account;
    write_many_rows();
    unlink(file_paths[2]);
    CHECK_INT(run(&options, 3, &account), TD_ERR_DATA);
    CHECK_MESSAGE("c.jsonl");
}

int main(void) {
    REQUIRE(td_tokenizer_open(TEST_FIXTURES "/tokenizers/smollm", &tokenizer) == TD_OK);
    TEST(stores_are_the_same_bytes_on_any_ranks_and_threads);
    TEST(duplicates_stay_on_one_side);
    TEST(every_reason_is_counted_with_its_first_row);
    TEST(what_is_too_long_follows_the_filters);
    TEST(when_nothing_is_left_the_main_reason_comes_first);
    TEST(the_first_bad_row_of_all_is_named);
    TEST(a_file_that_goes_missing_ends_all_ranks);
    td_tokenizer_close(tokenizer);
    return test_report();
}
