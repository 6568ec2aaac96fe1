#include "comm/queue_internal.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    FIRST_CAPACITY = 256,
    // A caller looks this often, giving way to the communication thread in between, before it goes
    // to sleep.
    WAIT_YIELDS = 64,
};

static td_queue_entry *entry_at(const td_queue *queue, uint64_t sequence) {
    return &queue->entries[sequence & (queue->capacity - 1)];
}

// Condition variables on the monotonic clock, so that setting the time of day moves no deadline.
static int condition_init(pthread_cond_t *condition) {
    pthread_condattr_t attributes;
    if (pthread_condattr_init(&attributes) != 0)
        return -1;
    int error = pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    if (error == 0)
        error = pthread_cond_init(condition, &attributes);
    pthread_condattr_destroy(&attributes);
    return error;
}

td_status td_queue_init(td_queue *queue) {
    memset(queue, 0, sizeof *queue);
    queue->capacity = FIRST_CAPACITY;
    queue->entries = calloc(queue->capacity, sizeof *queue->entries);
    if (!queue->entries)
        return td_fail(TD_ERR_MEMORY, "cannot allocate the queue of collectives");
    if (pthread_mutex_init(&queue->lock, NULL) != 0)
        goto failed_lock;
    if (condition_init(&queue->work) != 0)
        goto failed_work;
    if (condition_init(&queue->done) != 0)
        goto failed_done;
    return TD_OK;
failed_done:
    pthread_cond_destroy(&queue->work);
failed_work:
    pthread_mutex_destroy(&queue->lock);
failed_lock:
    free(queue->entries);
    return td_fail(TD_ERR_INTERNAL, "cannot create the queue of collectives");
}

void td_queue_fini(td_queue *queue) {
    pthread_cond_destroy(&queue->done);
    pthread_cond_destroy(&queue->work);
    pthread_mutex_destroy(&queue->lock);
    free(queue->entries);
}

// Only when more operations are outstanding than ever before.
static td_status grow(td_queue *queue) {
    uint64_t capacity = 2 * queue->capacity;
    td_queue_entry *entries = calloc(capacity, sizeof *entries);
    if (!entries)
        return td_fail(TD_ERR_MEMORY, "cannot allocate a queue of %llu collectives",
                       (unsigned long long)capacity);
    for (uint64_t i = queue->n_freed; i < queue->n_started; i++)
        entries[i & (capacity - 1)] = *entry_at(queue, i);
    free(queue->entries);
    queue->entries = entries;
    queue->capacity = capacity;
    return TD_OK;
}

// Everything that all ranks must agree on. Sizes of a node broadcast belong to the node.
static void extend_chain(td_queue *queue, const td_operation *operation) {
    int is_local = operation->kind == TD_OPERATION_NODE_BROADCAST;
    uint64_t words[5] = {
        queue->chain,
        (uint64_t)operation->kind,
        is_local ? 0 : (uint64_t)operation->count,
        (uint64_t)operation->root,
        td_hash_bytes(operation->what, strlen(operation->what)).low,
    };
    queue->chain = td_hash_bytes(words, sizeof words).low;
    queue->history[queue->n_started % TD_QUEUE_HISTORY] =
        (td_history_entry){queue->chain, operation->what};
}

td_status td_queue_push(td_queue *queue, const td_operation *operation, uint64_t *out) {
    td_status status = TD_OK;
    pthread_mutex_lock(&queue->lock);
    if (queue->n_started - queue->n_freed == queue->capacity)
        status = grow(queue);
    if (status == TD_OK) {
        *entry_at(queue, queue->n_started) = (td_queue_entry){.operation = *operation};
        extend_chain(queue, operation);
        *out = queue->n_started++;
        pthread_cond_signal(&queue->work);
    }
    pthread_mutex_unlock(&queue->lock);
    return status;
}

// 1: is done, and the entry is given back. -1: there is no such request to wait for.
static int try_wait(td_queue *queue, uint64_t sequence) {
    if (sequence < queue->n_freed || sequence >= queue->n_started ||
        entry_at(queue, sequence)->is_waited)
        return -1;
    if (!entry_at(queue, sequence)->is_done)
        return 0;
    entry_at(queue, sequence)->is_waited = 1;
    // What another library does may be over before it was taken.
    while (queue->n_freed < queue->n_done && queue->n_freed < queue->n_taken &&
           entry_at(queue, queue->n_freed)->is_waited)
        queue->n_freed++;
    return 1;
}

static td_status fail_outstanding(uint64_t sequence) {
    return td_fail(TD_ERR_INTERNAL, "wait for request %llu, which is not outstanding",
                   (unsigned long long)sequence);
}

td_status td_queue_test(td_queue *queue, uint64_t sequence, int *out_done) {
    pthread_mutex_lock(&queue->lock);
    int is_outstanding = sequence >= queue->n_freed && sequence < queue->n_started &&
                         !entry_at(queue, sequence)->is_waited;
    int is_done = is_outstanding && entry_at(queue, sequence)->is_done;
    pthread_mutex_unlock(&queue->lock);
    if (!is_outstanding)
        return fail_outstanding(sequence);
    *out_done = is_done;
    return TD_OK;
}

td_status td_queue_wait(td_queue *queue, uint64_t sequence) {
    atomic_fetch_add(&queue->n_waiting, 1);
    pthread_mutex_lock(&queue->lock);
    int result = try_wait(queue, sequence);
    for (int i = 0; i < WAIT_YIELDS && result == 0; i++) {
        pthread_mutex_unlock(&queue->lock);
        sched_yield();
        pthread_mutex_lock(&queue->lock);
        result = try_wait(queue, sequence);
    }
    while (result == 0) {
        pthread_cond_wait(&queue->done, &queue->lock);
        result = try_wait(queue, sequence);
    }
    pthread_mutex_unlock(&queue->lock);
    atomic_fetch_sub(&queue->n_waiting, 1);
    return result < 0 ? fail_outstanding(sequence) : TD_OK;
}

int td_queue_take(td_queue *queue, td_operation *out_operation, uint64_t *out_sequence) {
    pthread_mutex_lock(&queue->lock);
    int found = queue->n_taken < queue->n_started;
    if (found) {
        *out_operation = entry_at(queue, queue->n_taken)->operation;
        *out_sequence = queue->n_taken++;
    }
    pthread_mutex_unlock(&queue->lock);
    return found;
}

void td_queue_piece_done(td_queue *queue, uint64_t sequence, int n_pieces) {
    pthread_mutex_lock(&queue->lock);
    td_queue_entry *entry = entry_at(queue, sequence);
    if (++entry->n_pieces_done == n_pieces) {
        entry->is_done = 1;
        while (queue->n_done < queue->n_started && entry_at(queue, queue->n_done)->is_done)
            queue->n_done++;
        pthread_cond_broadcast(&queue->done);
    }
    pthread_mutex_unlock(&queue->lock);
}

void td_queue_idle(td_queue *queue, double seconds) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    long nanoseconds = until.tv_nsec + (long)(seconds * 1e9);
    until.tv_sec += nanoseconds / 1000000000;
    until.tv_nsec = nanoseconds % 1000000000;
    pthread_mutex_lock(&queue->lock);
    if (queue->n_taken == queue->n_started && !queue->woken)
        pthread_cond_timedwait(&queue->work, &queue->lock, &until);
    queue->woken = 0;
    pthread_mutex_unlock(&queue->lock);
}

int td_queue_is_waited_for(td_queue *queue) {
    return atomic_load_explicit(&queue->n_waiting, memory_order_relaxed) > 0;
}

void td_queue_wake(td_queue *queue) {
    pthread_mutex_lock(&queue->lock);
    queue->woken = 1;
    pthread_cond_signal(&queue->work);
    pthread_mutex_unlock(&queue->lock);
}

static int find_mark(const td_queue *queue, uint64_t sequence, td_mark *out) {
    if (sequence >= queue->n_started || queue->n_started - sequence > TD_QUEUE_HISTORY)
        return 0;
    const td_history_entry *entry = &queue->history[sequence % TD_QUEUE_HISTORY];
    *out = (td_mark){.sequence = sequence, .chain = entry->chain};
    snprintf(out->what, sizeof out->what, "%s", entry->what);
    return 1;
}

int td_queue_find_mark(void *context, uint64_t sequence, td_mark *out) {
    td_queue *queue = context;
    pthread_mutex_lock(&queue->lock);
    int found = find_mark(queue, sequence, out);
    pthread_mutex_unlock(&queue->lock);
    return found;
}

void td_queue_describe(td_queue *queue, td_beat *beat) {
    pthread_mutex_lock(&queue->lock);
    beat->n_started = queue->n_started;
    beat->n_done = queue->n_done;
    uint64_t n_marks = queue->n_started < TD_BEAT_MARKS ? queue->n_started : TD_BEAT_MARKS;
    beat->n_marks = (int32_t)n_marks;
    for (uint64_t i = 0; i < n_marks; i++)
        find_mark(queue, queue->n_started - n_marks + i, &beat->marks[i]);
    uint64_t open = queue->n_done < queue->n_started ? queue->n_done : queue->n_started - 1;
    // An open one may be older than the history; its name is still in its entry.
    if (queue->n_started > 0 && !find_mark(queue, open, &beat->open)) {
        beat->open = (td_mark){.sequence = open};
        snprintf(beat->open.what, sizeof beat->open.what, "%s",
                 entry_at(queue, open)->operation.what);
    }
    pthread_mutex_unlock(&queue->lock);
}
