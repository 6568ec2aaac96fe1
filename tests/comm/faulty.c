// A small job that goes wrong in the way its first argument says; faults.sh starts it and looks at
// what comes out.
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "comm/comm.h"
#include "comm/watchdog_internal.h"
#include "runtime/core/log.h"
#include "runtime/core/progress.h"

enum { N_STEPS = 12, FAULTY_STEP = 7, ALL = -1, NONE = -2 };

static td_comm *comm;
static int rank, size;
static const char *folder; // for the files that faults.sh looks at
static int sums_are_garbage;

static void sleep_ms(long ms) {
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
}

static void write_note(const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s.%d", folder, name, (int)getpid());
    FILE *file = fopen(path, "w");
    if (file)
        fclose(file);
}

// As long as the longest sum of any scenario: the library writes past the end of the shorter one of
// two that do not fit.
static int64_t values[1 << 17];

static void norm(void) {
    values[0] = 1;
    if (td_comm_allreduce_i64(comm, values, 1, "norm") != TD_OK ||
        (values[0] != size && !sums_are_garbage))
        td_comm_abort(comm, TD_ERR_INTERNAL, "wrong sum");
}

static void gather(void) {
    int64_t all[64];
    if (td_comm_allgather(comm, &(int64_t){rank}, all, sizeof *all, "adapter gather") != TD_OK)
        td_comm_abort(comm, TD_ERR_INTERNAL, "gather failed");
}

static void stand_still(void) {
    sleep_ms(60000);
}

static void stop(void) {
    raise(SIGSTOP);
}

static void be_killed(void) {
    raise(SIGKILL);
}

static void skip(void) {
    gather();
}

// Sizes that do not fit: the library itself may notice.
static void skip_to_longer(void) {
    td_comm_allreduce_i64(comm, values, 1 << 17, "embedding");
}

// The same function with the same size: MPI matches it with the others' norm and nobody notices a
// thing.
static void skip_alike(void) {
    int64_t value = 1;
    for (int i = 0; i < 1000; i++) {
        td_comm_allreduce_i64(comm, &value, 1, "loss");
        td_progress_tick();
        sleep_ms(10);
    }
}

static void finish_early(void) {
    td_comm_finish(comm);
}

static void be_slow(void) {
    for (int i = 0; i < 50; i++) {
        td_progress_tick();
        sleep_ms(100);
    }
}

// All processes are stopped for longer than the deadline and continued, as on a suspended machine.
// By then the last rank has not called the next collective, and the others wait for it.
static void nap(void) {
    pid_t self = getpid(), child = fork();
    if (child == 0) {
        sleep_ms(500);
        kill(self, SIGSTOP);
        sleep_ms(3000);
        kill(self, SIGCONT);
        _exit(0);
    }
    for (int i = 0; i < 10 && rank == size - 1; i++)
        sleep_ms(100);
}

static void give_up(void) {
    td_comm_abort(comm, td_fail(TD_ERR_DATA, "line 7 is broken"), NULL);
}

static void *give_up_in_thread(void *unused) {
    (void)unused;
    td_comm_abort(comm, TD_ERR_NUMERIC, "the loss is not a number");
}

static void give_up_elsewhere(void) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, give_up_in_thread, NULL) == 0)
        pthread_join(thread, NULL);
}

static void leave(void) {
    exit(0);
}

typedef struct scenario {
    const char *name;
    void (*fault)(void);
} scenario;

static const scenario scenarios[] = {
    {"still", stand_still},
    {"stop", stop},
    {"kill", be_killed},
    {"skip", skip},
    {"longer", skip_to_longer},
    {"alike", skip_alike},
    {"finish", finish_early},
    {"slow", be_slow},
    {"nap", nap},
    {"abort", give_up},
    {"thread", give_up_elsewhere},
    {"leave", leave},
};

static void run_steps(void (*fault)(void), int faulty_rank) {
    for (uint32_t step = 1; step <= N_STEPS; step++) {
        td_progress_step(step);
        td_progress_phase(TD_PHASE_BACKWARD);
        td_progress_layer(step % 3);
        if (step == FAULTY_STEP && (rank == faulty_rank || faulty_rank == ALL)) {
            write_note("fault");
            fault();
        }
        norm();
        td_progress_phase(TD_PHASE_GATHER);
        gather();
    }
}

// Ends by itself when the watchdog does what it is for.
static int get_stuck(void) {
    td_watchdog watchdog;
    if (td_watchdog_start(&watchdog) != TD_OK)
        return 1;
    td_watchdog_arm(&watchdog, "MPI_Example", 0.5);
    for (int i = 0; i < 10; i++) {
        sleep_ms(100);
        td_watchdog_kick(&watchdog);
    }
    write_note("kicked");
    stand_still();
    return 0;
}

// faulty SCENARIO RANK FOLDER [DEADLINE]; rank -1: all
int main(int argc, char **argv) {
    if (argc < 4)
        return TD_ERR_USAGE;
    int faulty_rank = atoi(argv[2]);
    folder = argv[3];
    if (strcmp(argv[1], "stuck") == 0)
        return get_stuck();
    write_note("pid");
    // The rank is known from the environment only: this one never gets to MPI.
    const char *launched_rank = getenv("OMPI_COMM_WORLD_RANK");
    if (strcmp(argv[1], "absent") == 0 && launched_rank && atoi(launched_rank) == faulty_rank) {
        write_note("fault");
        stand_still();
    }
    if (td_comm_bootstrap(&comm) != TD_OK)
        td_comm_abort(NULL, TD_ERR_PEER, NULL);
    rank = td_comm_rank(comm);
    size = td_comm_size(comm);
    td_log_init(TD_LOG_INFO, rank, size);
    td_comm_set_deadline(comm, argc > 4 ? atof(argv[4]) : 2);
    void (*fault)(void) = NULL;
    for (size_t i = 0; i < sizeof scenarios / sizeof *scenarios; i++)
        if (strcmp(argv[1], scenarios[i].name) == 0)
            fault = scenarios[i].fault;
    sums_are_garbage = fault == skip || fault == skip_to_longer || fault == skip_alike;
    run_steps(fault, fault ? faulty_rank : NONE);
    td_status status = td_comm_finish(comm);
    if (status == TD_OK && rank == 0)
        printf("all steps done\n");
    return status;
}
