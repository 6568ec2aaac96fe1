// The judgement of heartbeats, without MPI and without waiting: the clock is a number.
#include "test.h"

#include "comm/board_internal.h"

enum { MAX_SIZE = 1000 };
static const double deadline = 30;

static td_board board;
static td_host hosts[MAX_SIZE];
static char diagnosis[TD_DIAGNOSIS_BYTES];

// What this rank called: collective i has the chain 1000 + i.
static int find_own(void *n_started, uint64_t sequence, td_mark *out) {
    if (sequence >= *(const uint64_t *)n_started)
        return 0;
    *out = (td_mark){.sequence = sequence, .chain = 1000 + sequence};
    snprintf(out->what, sizeof out->what, "own %d", (int)sequence);
    return 1;
}

static uint64_t own_started = 100;

static void begin(int rank, int size) {
    for (int i = 0; i < size; i++) {
        snprintf(hosts[i].name, sizeof hosts[i].name, "node%d", i / 8);
        hosts[i].pid = 1000 + i;
    }
    REQUIRE(td_board_init(&board, rank, size, hosts, 0) == TD_OK);
    board.find_mark = find_own;
    board.find_context = &own_started;
}

static td_beat beat_of(int rank, uint64_t n_started, uint64_t n_done, double open_seconds) {
    td_beat beat;
    memset(&beat, 0, sizeof beat);
    beat.rank = rank;
    beat.progress.step = 5;
    beat.progress.phase = TD_PHASE_BACKWARD;
    beat.n_started = n_started;
    beat.n_done = n_done;
    beat.open_seconds = open_seconds;
    beat.open.sequence = n_done < n_started ? n_done : n_started - 1;
    snprintf(beat.open.what, sizeof beat.open.what, "norm");
    return beat;
}

static void note(int rank, uint64_t n_started, uint64_t n_done, double open_seconds, double now) {
    td_beat beat = beat_of(rank, n_started, n_done, open_seconds);
    td_board_note(&board, &beat, now);
}

// As note(), by a rank that works: its ticks are the time.
static void note_alive(int rank, uint64_t n_started, double now) {
    td_beat beat = beat_of(rank, n_started, n_started, 0);
    beat.progress.ticks = (uint64_t)(now * 10);
    td_board_note(&board, &beat, now);
}

static td_verdict judge(double now) {
    return td_board_judge(&board, deadline, now, diagnosis);
}

static void observers_are_distinct_and_spread(void) {
    for (int size = 1; size <= MAX_SIZE; size++) {
        int n = td_observer_count(size);
        CHECK_INT(n, size < 4 ? size : 4);
        for (int i = 0; i < n; i++) {
            CHECK_INT(td_observer_index(td_observer_rank(i, size), size), i);
            CHECK(td_observer_rank(i, size) < size);
        }
    }
    CHECK_INT(td_observer_rank(1, 1000), 250);
    CHECK_INT(td_observer_index(251, 1000), -1);
}

static void a_rank_that_stands_still_is_named(void) {
    begin(0, 4);
    for (double now = 0; now < 29; now += 0.5) {
        for (int rank = 0; rank < 4; rank++)
            note(rank, rank == 2 ? 16 : 17, 16, rank == 2 ? 0 : now, now);
        CHECK_INT(judge(now), TD_VERDICT_FINE);
    }
    for (int rank = 0; rank < 4; rank++)
        note(rank, rank == 2 ? 16 : 17, 16, rank == 2 ? 0 : 30.5, 30.5);
    CHECK_INT(judge(30.5), TD_VERDICT_ABSENT);
    CHECK(strstr(diagnosis, "rank 2 (host node0, pid 1002) did not reach collective 17 (norm)"));
    CHECK(strstr(diagnosis, "no progress for 30 s"));
    CHECK(strstr(diagnosis, "ranks 0-1, 3: step 5, backward, in collective 17 (norm) for 30 s"));
    td_board_fini(&board);
}

static void a_rank_that_ticks_is_given_time(void) {
    begin(0, 3);
    for (double now = 0; now < 500; now += 0.5) {
        note_alive(0, 16, now);
        note(1, 17, 16, now, now);
        note(2, 17, 16, now, now);
        CHECK_INT(judge(now), TD_VERDICT_FINE);
    }
    // And then no more.
    for (double now = 500; now < 540; now += 0.5) {
        note_alive(0, 16, 500);
        board.peers[0].heard_at = now;
        note(1, 17, 16, now, now);
        note(2, 17, 16, now, now);
        CHECK_INT(judge(now), now < 530 ? TD_VERDICT_FINE : TD_VERDICT_ABSENT);
    }
    td_board_fini(&board);
}

static void a_silent_rank_is_named_though_it_ticked(void) {
    begin(1, 3);
    for (double now = 0; now < 50; now += 0.5) {
        if (now < 10)
            note_alive(0, 16, now);
        note(1, 17, 16, now, now);
        note(2, 17, 16, now, now);
        CHECK_INT(judge(now), now - 9.5 < deadline ? TD_VERDICT_FINE : TD_VERDICT_ABSENT);
    }
    CHECK(strstr(diagnosis, "rank 0 (host node0, pid 1000) did not reach collective 17"));
    CHECK(strstr(diagnosis, "no sign of life for 40 s"));
    CHECK(strstr(diagnosis, "rank 0: last heard of in step 5"));
    td_board_fini(&board);
}

static void a_rank_that_stopped_inside_the_collective_is_named(void) {
    begin(0, 3);
    note(2, 17, 16, 1, 1);
    for (double now = 1; now < 33; now += 0.5) {
        note(0, 17, 16, now, now);
        note(1, 17, 16, now, now);
        CHECK_INT(judge(now), now < 31 ? TD_VERDICT_FINE : TD_VERDICT_ABSENT);
    }
    CHECK(strstr(diagnosis, "rank 2 (host node0, pid 1002) does not take part in collective 17"));
    td_board_fini(&board);
}

static void nobody_is_accused_while_nobody_waits(void) {
    begin(0, 2);
    for (double now = 0; now < 200; now += 0.5) {
        note(0, 16, 16, 0, now);
        note(1, 16, 16, 0, now);
        CHECK_INT(judge(now), TD_VERDICT_FINE);
    }
    td_board_fini(&board);
}

static void a_collective_that_all_are_in_but_does_not_complete_is_told(void) {
    begin(0, 3);
    double came = 40; // the last rank
    for (double now = 0; now < 80; now += 0.5) {
        note(0, 17, 16, now, now);
        note(1, 17, 16, now, now);
        if (now < came)
            note_alive(2, 16, now);
        else
            note(2, 17, 16, now - came, now);
        td_verdict verdict = judge(now);
        CHECK_INT(verdict, now < came + deadline ? TD_VERDICT_FINE : TD_VERDICT_STUCK);
    }
    CHECK(strstr(diagnosis, "all ranks are in collective 17 (norm), but it does not complete"));
    td_board_fini(&board);
}

static void a_transfer_that_moves_is_given_time(void) {
    begin(0, 2);
    for (double now = 0; now < 300; now += 0.5) {
        // A piece arrives every 20 s.
        double quiet = now - 20 * (int)(now / 20);
        note(0, 17, 16, quiet, now);
        note(1, 17, 16, quiet, now);
        CHECK_INT(judge(now), TD_VERDICT_FINE);
    }
    td_board_fini(&board);
}

static td_beat beat_with_marks(int rank, uint64_t n_started, uint64_t first_wrong) {
    td_beat beat = beat_of(rank, n_started, n_started - 1, 0);
    beat.n_marks = TD_BEAT_MARKS;
    for (int i = 0; i < TD_BEAT_MARKS; i++) {
        uint64_t sequence = n_started - TD_BEAT_MARKS + (uint64_t)i;
        beat.marks[i] = (td_mark){.sequence = sequence,
                                  .chain = sequence < first_wrong ? 1000 + sequence : 7 * sequence};
        snprintf(beat.marks[i].what, sizeof beat.marks[i].what, "theirs %d", (int)sequence);
    }
    return beat;
}

static void other_collectives_are_noticed_at_once(void) {
    begin(0, 3);
    own_started = 50;
    td_beat right = beat_with_marks(1, 50, 100), wrong = beat_with_marks(2, 49, 47);
    td_board_note(&board, &right, 1);
    CHECK_INT(judge(1), TD_VERDICT_FINE);
    td_board_note(&board, &wrong, 1);
    CHECK_INT(judge(1), TD_VERDICT_DISAGREE);
    CHECK(strstr(diagnosis, "rank 2 (host node0, pid 1002) is in collective 48 (theirs 47) while "
                            "rank 0 is in 48 (own 47)"));
    own_started = 100;
    td_board_fini(&board);
}

// The other rank is ahead of what this one has called: the mark of its earlier beat still tells.
static void an_earlier_beat_tells_of_a_rank_that_is_ahead(void) {
    begin(0, 2);
    own_started = 40;
    td_beat ahead = beat_with_marks(1, 60, 100);
    td_board_note(&board, &ahead, 1);
    CHECK_INT(judge(1), TD_VERDICT_FINE);
    ahead.earlier = (td_mark){.sequence = 38, .chain = 5, .what = "other"};
    td_board_note(&board, &ahead, 2);
    CHECK_INT(judge(2), TD_VERDICT_DISAGREE);
    own_started = 100;
    td_board_fini(&board);
}

static void a_thousand_ranks_fit_into_one_line(void) {
    begin(0, 1000);
    for (int rank = 0; rank < 1000; rank++) {
        td_beat beat = beat_of(rank, 17, 16, 31);
        if (rank % 3 == 0)
            beat.progress.phase = TD_PHASE_REDUCE;
        if (rank == 617)
            beat = beat_of(rank, 16, 16, 0);
        td_board_note(&board, &beat, 0);
        board.peers[rank].heard_at = 31;
    }
    CHECK_INT(judge(31), TD_VERDICT_ABSENT);
    CHECK(strstr(diagnosis, "rank 617 (host node77, pid 1617) did not reach collective 17"));
    CHECK(strstr(diagnosis, " rank 617: step 5, backward, micro-batch 0, layer 0, after "));
    CHECK(strstr(diagnosis, "ranks 0, 3, 6,"));
    CHECK(strstr(diagnosis, "..."));
    CHECK(strlen(diagnosis) < 1000);
    td_board_fini(&board);
}

// Every rank somewhere else: the text is cut, not overrun.
static void many_places_are_cut(void) {
    begin(0, 1000);
    for (int rank = 0; rank < 1000; rank++) {
        td_beat beat = beat_of(rank, 17, 16, 31);
        beat.progress.step = (uint32_t)rank;
        memset(beat.open.what, 'x', sizeof beat.open.what);
        td_board_note(&board, &beat, 31);
    }
    board.peers[3].heard_at = 0;
    CHECK_INT(judge(31), TD_VERDICT_ABSENT);
    CHECK(strlen(diagnosis) < TD_DIAGNOSIS_BYTES);
    CHECK(strstr(diagnosis, "others elsewhere"));
    td_board_fini(&board);
}

// Rank 5 of 1000 hears only the observers.
static void ranks_without_beats_are_not_accused(void) {
    begin(5, 1000);
    for (double now = 0; now < 100; now += 0.5) {
        for (int i = 0; i < 4; i++)
            note_alive(td_observer_rank(i, 1000), 16, now);
        note(5, 17, 16, now, now);
        CHECK_INT(judge(now), TD_VERDICT_FINE);
    }
    note(5, 17, 16, 131, 131);
    CHECK_INT(judge(131), TD_VERDICT_ABSENT);
    CHECK(strstr(diagnosis, "rank 0 (host node0, pid 1000) and 3 more"));
    td_board_fini(&board);
}

static void nonsense_from_the_wire_is_survived(void) {
    begin(0, 2);
    td_beat beat;
    memset(&beat, 0xff, sizeof beat);
    td_board_note(&board, &beat, 1);
    beat.rank = 1;
    td_board_note(&board, &beat, 1);
    judge(1);
    CHECK(strlen(diagnosis) < TD_DIAGNOSIS_BYTES);
    beat.rank = 2;
    td_board_note(&board, &beat, 1);
    CHECK_INT(board.peers[0].has_beat, 0);
    td_board_fini(&board);
}

int main(void) {
    TEST(observers_are_distinct_and_spread);
    TEST(a_rank_that_stands_still_is_named);
    TEST(a_rank_that_ticks_is_given_time);
    TEST(a_silent_rank_is_named_though_it_ticked);
    TEST(a_rank_that_stopped_inside_the_collective_is_named);
    TEST(nobody_is_accused_while_nobody_waits);
    TEST(a_collective_that_all_are_in_but_does_not_complete_is_told);
    TEST(a_transfer_that_moves_is_given_time);
    TEST(other_collectives_are_noticed_at_once);
    TEST(an_earlier_beat_tells_of_a_rank_that_is_ahead);
    TEST(a_thousand_ranks_fit_into_one_line);
    TEST(many_places_are_cut);
    TEST(ranks_without_beats_are_not_accused);
    TEST(nonsense_from_the_wire_is_survived);
    return test_report();
}
