/* Writes the quickstart's chats: requests to an assistant and the tool call that answers each of
 * them.
 *
 * The same seed gives the same bytes on every machine. Argument values are invented words and
 * numbers, and a hash decides for each word and number whether it may occur in training or in the
 * held-out chats. So a model can answer a held-out request only by copying from it; memory does not
 * help. Every held-out value is checked once more against the training values before a file is
 * written. */
#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum {
    MAX_ARGUMENTS = 3,
    MAX_PHRASINGS = 8,
    MAX_VALUE_BYTES = 64,
    MAX_TEXT_BYTES = 512,
    MAX_ROWS = 1000000
};

typedef enum { KIND_WORD, KIND_NAME, KIND_PHRASE, KIND_NUMBER, KIND_TIME, KIND_DATE } argument_kind;
typedef enum { SPLIT_TRAIN, SPLIT_HELDOUT } split;

typedef struct {
    const char *key;
    argument_kind kind;
    int low, high; // of a number
} argument;

typedef struct {
    const char *name;
    argument arguments[MAX_ARGUMENTS];    // a key of NULL ends the list
    const char *phrasings[MAX_PHRASINGS]; // %1 %2 %3 stand for the arguments in order
} tool;

static const char SYSTEM[] = "Call one tool.";

static const tool TOOLS[] = {
    {.name = "set_timer",
     .arguments = {{"minutes", KIND_NUMBER, 2, 999}, {"label", KIND_WORD, 0, 0}},
     .phrasings = {"Set a timer for %1 minutes called %2.",
                   "Start the %2 timer, %1 minutes please.", "I need a %1 minute timer named %2.",
                   "Please time %2 for %1 minutes.", "Wake me in %1 minutes for the %2.",
                   "%2 needs %1 minutes, set a timer."}},
    {.name = "send_message",
     .arguments = {{"recipient", KIND_NAME, 0, 0}, {"text", KIND_PHRASE, 0, 0}},
     .phrasings = {"Send a message to %1 saying %2.", "Tell %1 this: %2.", "Write to %1: %2.",
                   "Text %2 to %1 please.", "Let %1 know: %2.", "Message %1 with the words %2."}},
    {.name = "get_weather",
     .arguments = {{"city", KIND_NAME, 0, 0}, {"days", KIND_NUMBER, 2, 99}},
     .phrasings = {"What will the weather be in %1 for the next %2 days?",
                   "Weather in %1, %2 days please.", "Show me the %2 day forecast for %1.",
                   "Will it rain in %1 in the next %2 days?", "Give me %2 days of weather for %1.",
                   "I travel to %1 for %2 days, how is the weather?"}},
    {.name = "play_song",
     .arguments = {{"title", KIND_PHRASE, 0, 0}, {"artist", KIND_NAME, 0, 0}},
     .phrasings = {"Play %1 by %2.", "Put on the song %1 from %2.", "I want to hear %2 with %1.",
                   "Can you play %2 singing %1?", "Let me listen to %1 by %2.",
                   "The song %1 of %2 please."}},
    {.name = "book_table",
     .arguments = {{"place", KIND_NAME, 0, 0},
                   {"guests", KIND_NUMBER, 2, 99},
                   {"time", KIND_TIME, 0, 0}},
     .phrasings = {"Book a table at %1 for %2 people at %3.", "Reserve %2 seats at %1 for %3.",
                   "At %3 we are %2 at %1, book a table.", "A table for %2 at %3 in %1 please.",
                   "We want to eat at %1 at %3, %2 guests.",
                   "Get me a table for %2 guests, %1, %3."}},
    {.name = "convert",
     .arguments = {{"amount", KIND_NUMBER, 2, 9999},
                   {"from", KIND_WORD, 0, 0},
                   {"to", KIND_WORD, 0, 0}},
     .phrasings = {"Convert %1 %2 to %3.", "How many %3 are %1 %2?", "What is %1 %2 in %3?",
                   "Change %1 %2 into %3 please.", "I have %1 %2 and want %3.",
                   "Give me %3 for %1 %2."}},
    {.name = "add_item",
     .arguments = {{"item", KIND_WORD, 0, 0},
                   {"quantity", KIND_NUMBER, 2, 999},
                   {"list", KIND_WORD, 0, 0}},
     .phrasings = {"Add %2 %1 to the %3 list.", "Put %2 %1 on my %3 list.",
                   "My %3 list needs %2 %1.", "On the list %3, note %2 %1.",
                   "I must buy %2 %1, add it to %3.", "Please write %2 %1 in the %3 list."}},
    {.name = "create_event",
     .arguments = {{"title", KIND_PHRASE, 0, 0},
                   {"date", KIND_DATE, 0, 0},
                   {"time", KIND_TIME, 0, 0}},
     .phrasings = {"Create the event %1 on %2 at %3.", "Put %1 in my calendar for %2, %3.",
                   "On %2 at %3 there is %1, add it.", "Plan %1 at %3 on %2.",
                   "Schedule %1 for %2 at %3 please.", "New event at %3 on %2: %1."}},
    {.name = "set_light",
     .arguments = {{"room", KIND_WORD, 0, 0}, {"level", KIND_NUMBER, 2, 999}},
     .phrasings = {"Set the light in the %1 to %2.", "Dim the %1 lamp to %2.",
                   "Turn the %1 lights to level %2.", "Make it %2 bright in the %1.",
                   "Light level %2 in the %1 please.", "I want the %1 light at %2."}},
    {.name = "find_route",
     .arguments = {{"origin", KIND_NAME, 0, 0}, {"destination", KIND_NAME, 0, 0}},
     .phrasings = {"How do I get from %1 to %2?", "Find a route from %1 to %2.",
                   "Show me the way to %2 from %1.", "I am in %1 and want to go to %2.",
                   "Take me to %2, I start in %1.", "Which road leads from %1 to %2?"}},
};
enum { N_TOOLS = sizeof TOOLS / sizeof TOOLS[0] };

/* Open-addressing set of the words and numbers used in training; owns its copies. */
typedef struct {
    char **slots;
    size_t n_slots, n_used;
} string_set;

typedef struct {
    uint64_t state;
    split side;
    string_set *train_values;
} generator;

typedef struct {
    char *bytes;
    size_t n_bytes, capacity;
} buffer;

typedef struct {
    uint64_t seed;
    long n_train, n_heldout;
    const char *directory;
} options;

static void die(const char *format, ...) {
    va_list list;
    va_start(list, format);
    fputs("quickstart_chats: ", stderr);
    vfprintf(stderr, format, list);
    fputc('\n', stderr);
    va_end(list);
    exit(1);
}

static void *checked(void *memory) {
    if (!memory) {
        die("out of memory");
    }
    return memory;
}

/* SplitMix64 (Steele, Lea, Flood 2014). */
static uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static int draw(generator *g, int low, int high) {
    g->state += UINT64_C(0x9e3779b97f4a7c15);
    return low + (int)(mix(g->state) % (uint64_t)(high - low + 1));
}

/* FNV-1a without regard to case, so that "Zorin" and "zorin" fall on the same side. */
static uint64_t hash_text(const char *text) {
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (; *text; ++text) {
        unsigned char c = (unsigned char)*text;
        hash = (hash ^ (c >= 'A' && c <= 'Z' ? c + 32u : c)) * UINT64_C(0x100000001b3);
    }
    return mix(hash);
}

/* A quarter of all possible words and numbers is kept for the held-out chats. */
static split split_of(const char *value) {
    return hash_text(value) % 4 == 0 ? SPLIT_HELDOUT : SPLIT_TRAIN;
}

static char **set_find(const string_set *set, const char *text) {
    size_t at = (size_t)hash_text(text) & (set->n_slots - 1);
    while (set->slots[at] && strcmp(set->slots[at], text) != 0) {
        at = (at + 1) & (set->n_slots - 1);
    }
    return &set->slots[at];
}

static void set_grow(string_set *set) {
    string_set larger = {.n_slots = set->n_slots ? 2 * set->n_slots : 1024, .n_used = set->n_used};
    larger.slots = checked(calloc(larger.n_slots, sizeof *larger.slots));
    for (size_t i = 0; i < set->n_slots; ++i) {
        if (set->slots[i]) {
            *set_find(&larger, set->slots[i]) = set->slots[i];
        }
    }
    free(set->slots);
    *set = larger;
}

static void set_add(string_set *set, const char *text) {
    if (2 * (set->n_used + 1) > set->n_slots) {
        set_grow(set);
    }
    char **slot = set_find(set, text);
    if (!*slot) {
        *slot = checked(strdup(text));
        set->n_used++;
    }
}

static bool set_has(const string_set *set, const char *text) {
    return set->n_slots > 0 && *set_find(set, text) != NULL;
}

static void set_fini(string_set *set) {
    for (size_t i = 0; i < set->n_slots; ++i) {
        free(set->slots[i]);
    }
    free(set->slots);
}

static void buffer_append(buffer *b, const char *text) {
    size_t n = strlen(text);
    if (b->n_bytes + n + 1 > b->capacity) {
        b->capacity = 2 * (b->n_bytes + n + 1);
        b->bytes = checked(realloc(b->bytes, b->capacity));
    }
    memcpy(b->bytes + b->n_bytes, text, n + 1);
    b->n_bytes += n;
}

static void syllables(generator *g, char *out) {
    static const char *const onsets[] = {"b", "d", "f", "g", "h", "j", "k", "l", "m",
                                         "n", "p", "r", "s", "t", "v", "w", "z"};
    static const char *const vowels[] = {"a", "e", "i", "o", "u"};
    static const char *const codas[] = {"", "", "", "", "l", "m", "n", "r", "s", "t"};
    int n = draw(g, 2, 3);
    out[0] = 0;
    for (int i = 0; i < n; ++i) {
        strcat(out, onsets[draw(g, 0, sizeof onsets / sizeof *onsets - 1)]);
        strcat(out, vowels[draw(g, 0, sizeof vowels / sizeof *vowels - 1)]);
        strcat(out, codas[draw(g, 0, sizeof codas / sizeof *codas - 1)]);
    }
}

static void draw_candidate(generator *g, const argument *a, char out[MAX_VALUE_BYTES]) {
    switch (a->kind) {
    case KIND_NUMBER:
        snprintf(out, MAX_VALUE_BYTES, "%d", draw(g, a->low, a->high));
        break;
    case KIND_TIME: {
        int hour = draw(g, 0, 23);
        snprintf(out, MAX_VALUE_BYTES, "%02d:%02d", hour, draw(g, 0, 59));
        break;
    }
    case KIND_DATE: {
        int year = draw(g, 2020, 2079), month = draw(g, 1, 12);
        snprintf(out, MAX_VALUE_BYTES, "%d-%02d-%02d", year, month, draw(g, 1, 28));
        break;
    }
    default:
        syllables(g, out);
        if (a->kind == KIND_NAME) {
            out[0] = (char)(out[0] - 'a' + 'A');
        }
    }
}

/* Draws until the value falls on this side, then records it (training) or checks it (held-out). */
static void draw_atom(generator *g, const argument *a, char out[MAX_VALUE_BYTES]) {
    do {
        draw_candidate(g, a, out);
    } while (split_of(out) != g->side);
    if (g->side == SPLIT_TRAIN) {
        set_add(g->train_values, out);
    } else if (set_has(g->train_values, out)) {
        die("held-out value \"%s\" of \"%s\" occurs in training; nothing was written", out, a->key);
    }
}

static void draw_value(generator *g, const argument *a, char out[MAX_VALUE_BYTES]) {
    draw_atom(g, a, out);
    if (a->kind == KIND_PHRASE) {
        char second[MAX_VALUE_BYTES];
        draw_atom(g, a, second);
        strcat(strcat(out, " "), second);
    }
}

static void fill_phrasing(const char *phrasing, char values[][MAX_VALUE_BYTES], buffer *out) {
    for (; *phrasing; ++phrasing) {
        if (*phrasing == '%') {
            buffer_append(out, values[*++phrasing - '1']);
        } else {
            buffer_append(out, (const char[]){*phrasing, 0});
        }
    }
}

/* The call is JSON inside a JSON string, hence the escaped quotes. */
static void append_call(const tool *t, char values[][MAX_VALUE_BYTES], buffer *out) {
    char text[MAX_TEXT_BYTES];
    snprintf(text, sizeof text, "{\\\"name\\\":\\\"%s\\\",\\\"arguments\\\":{", t->name);
    buffer_append(out, text);
    for (int i = 0; i < MAX_ARGUMENTS && t->arguments[i].key; ++i) {
        const char *quote = t->arguments[i].kind == KIND_NUMBER ? "" : "\\\"";
        snprintf(text, sizeof text, "%s\\\"%s\\\":%s%s%s", i ? "," : "", t->arguments[i].key, quote,
                 values[i], quote);
        buffer_append(out, text);
    }
    buffer_append(out, "}}");
}

static void append_row(generator *g, buffer *out) {
    const tool *t = &TOOLS[draw(g, 0, N_TOOLS - 1)];
    int n_phrasings = 0;
    while (n_phrasings < MAX_PHRASINGS && t->phrasings[n_phrasings]) {
        n_phrasings++;
    }
    const char *phrasing = t->phrasings[draw(g, 0, n_phrasings - 1)];
    char values[MAX_ARGUMENTS][MAX_VALUE_BYTES];
    for (int i = 0; i < MAX_ARGUMENTS && t->arguments[i].key; ++i) {
        draw_value(g, &t->arguments[i], values[i]);
    }
    buffer_append(out, "{\"messages\":[{\"role\":\"system\",\"content\":\"");
    buffer_append(out, SYSTEM);
    buffer_append(out, "\"},{\"role\":\"user\",\"content\":\"");
    fill_phrasing(phrasing, values, out);
    buffer_append(out, "\"},{\"role\":\"assistant\",\"content\":\"");
    append_call(t, values, out);
    buffer_append(out, "\"}]}\n");
}

static buffer generate(uint64_t seed, split side, long n_rows, string_set *train_values) {
    generator g = {
        .state = mix(2 * seed + (uint64_t)side), .side = side, .train_values = train_values};
    buffer out = {0};
    buffer_append(&out, "");
    for (long i = 0; i < n_rows; ++i) {
        append_row(&g, &out);
    }
    return out;
}

static void write_file(const char *directory, const char *name, const buffer *content) {
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s/%s", directory, name) >= (int)sizeof path) {
        die("path too long: %s/%s", directory, name);
    }
    FILE *file = fopen(path, "wb");
    if (!file) {
        die("cannot create %s: %s", path, strerror(errno));
    }
    size_t written = fwrite(content->bytes, 1, content->n_bytes, file);
    if (fclose(file) != 0 || written != content->n_bytes) {
        die("cannot write %s: %s", path, strerror(errno));
    }
}

static uint64_t parse_count(const char *name, const char *text, uint64_t most) {
    char *end = NULL;
    errno = 0;
    uint64_t value = strtoull(text, &end, 10);
    if (errno || end == text || *end || text[0] == '-' || value > most) {
        die("%s must be a whole number up to %" PRIu64 ", not \"%s\"", name, most, text);
    }
    return value;
}

static options parse_options(int argc, char **argv) {
    options o = {.seed = 1, .n_train = -1, .n_heldout = -1};
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--seed") == 0) {
            o.seed = parse_count(argv[i], argv[i + 1], UINT64_MAX);
        } else if (strcmp(argv[i], "--train") == 0) {
            o.n_train = (long)parse_count(argv[i], argv[i + 1], MAX_ROWS);
        } else if (strcmp(argv[i], "--heldout") == 0) {
            o.n_heldout = (long)parse_count(argv[i], argv[i + 1], MAX_ROWS);
        } else if (strcmp(argv[i], "--out") == 0) {
            o.directory = argv[i + 1];
        } else {
            die("unknown option %s", argv[i]);
        }
    }
    if (argc % 2 == 0 || o.n_train < 0 || o.n_heldout < 0 || !o.directory) {
        die("usage: quickstart_chats --seed S --train N --heldout M --out DIR");
    }
    return o;
}

int main(int argc, char **argv) {
    options o = parse_options(argc, argv);
    umask(umask(077) | 022);
    string_set train_values = {0};
    buffer train = generate(o.seed, SPLIT_TRAIN, o.n_train, &train_values);
    buffer heldout = generate(o.seed, SPLIT_HELDOUT, o.n_heldout, &train_values);
    if (mkdir(o.directory, 0777) != 0 && errno != EEXIST) {
        die("cannot create %s: %s", o.directory, strerror(errno));
    }
    write_file(o.directory, "train.jsonl", &train);
    write_file(o.directory, "heldout.jsonl", &heldout);
    free(train.bytes);
    free(heldout.bytes);
    set_fini(&train_values);
    return 0;
}
