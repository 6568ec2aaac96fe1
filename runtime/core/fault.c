#include "runtime/core/fault.h"

// A file without code is none in ISO C.
typedef int td_fault_nothing;

#ifdef TANDEM_FAULTS

#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "runtime/core/progress.h"

enum { MAX_FAULTS = 8, NAME_CHARS = 64 };

typedef struct fault {
    char point[NAME_CHARS]; // "step", "collective.losses"
    int rank, step;         // -1: any
    int nth, seen;
    char action[NAME_CHARS];
    char argument[NAME_CHARS];
} fault;

static fault faults[MAX_FAULTS];
static int n_faults, this_rank;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void refuse(const char *text) {
    fprintf(stderr, "TANDEM_FAULT: cannot understand \"%s\"\n", text);
    _exit(2);
}

static void copy_name(char out[NAME_CHARS], const char *text) {
    if (strlen(text) >= NAME_CHARS)
        refuse(text);
    memcpy(out, text, strlen(text) + 1);
}

static void take_word(fault *out, char *word) {
    char *value = strchr(word, '=');
    if (value)
        *value++ = '\0';
    if (value && strcmp(word, "rank") == 0) {
        out->rank = atoi(value);
    } else if (value && strcmp(word, "step") == 0) {
        out->step = atoi(value);
    } else if (value && strcmp(word, "nth") == 0) {
        out->nth = atoi(value);
    } else {
        copy_name(out->action, word);
        copy_name(out->argument, value ? value : "");
    }
}

static void take_fault(char *text) {
    char *rest = text, *word = strsep(&rest, ":");
    if (n_faults == MAX_FAULTS)
        refuse(text);
    fault *out = &faults[n_faults++];
    *out = (fault){.rank = -1, .step = -1, .nth = 1};
    copy_name(out->point, word);
    while ((word = strsep(&rest, ":")))
        take_word(out, word);
    if (!*out->action)
        refuse(text);
}

// As the launchers say it, before there is a communicator.
static int find_rank(void) {
    static const char *const names[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (getenv(names[i]))
            return atoi(getenv(names[i]));
    return 0;
}

static void read_faults(void) {
    const char *text = getenv("TANDEM_FAULT");
    this_rank = find_rank();
    if (!text || !*text)
        return;
    char *copy = strdup(text), *rest = copy, *one;
    while (copy && (one = strsep(&rest, ";")))
        if (*one)
            take_fault(one);
    free(copy);
}

static int has_name(const fault *candidate, const char *point, const char *detail) {
    size_t length = strlen(point);
    if (strncmp(candidate->point, point, length) != 0)
        return 0;
    if (!candidate->point[length])
        return 1;
    return candidate->point[length] == '.' && detail &&
           strcmp(candidate->point + length + 1, detail) == 0;
}

// The fault that happens now, NULL for none.
static const fault *find(const char *point, const char *detail) {
    const fault *found = NULL;
    int step = (int)td_progress_read().step;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < n_faults && !found; i++) {
        fault *candidate = &faults[i];
        if (!has_name(candidate, point, detail) ||
            (candidate->rank >= 0 && candidate->rank != this_rank) ||
            (candidate->step >= 0 && candidate->step != step))
            continue;
        candidate->seen++;
        if (candidate->nth == 0 || candidate->seen == candidate->nth)
            found = candidate;
    }
    pthread_mutex_unlock(&lock);
    return found;
}

static void sleep_ms(int ms) {
    struct timespec left = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};
    while (nanosleep(&left, &left) != 0) {
    }
}

static void damage(const fault *now, void *data, size_t bytes) {
    const float wrong = NAN;
    if (strcmp(now->action, "nan") == 0 && bytes >= sizeof wrong)
        memcpy(data, &wrong, sizeof wrong);
    else if (bytes > 0)
        ((unsigned char *)data)[bytes / 2] ^= 0x40;
}

static td_status happen(const fault *now, const char *point, void *data, size_t bytes,
                        int *out_skip) {
    static const struct {
        const char *action;
        int number;
    } deaths[] = {{"kill", SIGKILL}, {"stop", SIGSTOP}, {"segv", SIGSEGV}, {"abort", SIGABRT}};
    for (size_t i = 0; i < sizeof deaths / sizeof deaths[0]; i++)
        if (strcmp(now->action, deaths[i].action) == 0) {
            raise(deaths[i].number);
            return TD_OK; // stopped, and continued
        }
    if (strcmp(now->action, "exit") == 0)
        _exit(atoi(now->argument));
    if (strcmp(now->action, "fail") == 0)
        return td_fail(TD_ERR_IO, "%s: failed on purpose", point);
    if (strcmp(now->action, "delay") == 0)
        sleep_ms(atoi(now->argument));
    else if (strcmp(now->action, "skip") == 0 && out_skip)
        *out_skip = 1;
    else if ((strcmp(now->action, "bit") == 0 || strcmp(now->action, "nan") == 0) && data)
        damage(now, data, bytes);
    else
        refuse(now->action);
    return TD_OK;
}

td_status td_fault_reach(const char *point, const char *detail, void *data, size_t bytes,
                         int *out_skip) {
    pthread_once(&once, read_faults);
    if (n_faults == 0)
        return TD_OK;
    const fault *now = find(point, detail);
    if (!now)
        return TD_OK;
    char line[4 * NAME_CHARS];
    int length = snprintf(line, sizeof line, "fault: %s on rank %d in step %u: %s\n", now->point,
                          this_rank, td_progress_read().step, now->action);
    if (write(STDERR_FILENO, line, (size_t)length) < 0)
        return TD_OK;
    return happen(now, point, data, bytes, out_skip);
}

#endif
