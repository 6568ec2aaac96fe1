// Half of a pair of jobs with different numbers of ranks: checkpoint_ranks save|load FOLDER
#include "checkpoint_run.h"

int main(int argc, char **argv) {
    td_comm *comm = NULL;
    toy_run run;
    REQUIRE(argc == 3);
    REQUIRE(td_comm_bootstrap(&comm) == TD_OK);
    run_open(&run, comm, argv[2]);
    td_checkpoint_writer *writer = run_writer(&run);
    if (strcmp(argv[1], "save") == 0) {
        CHECK_INT(run_write(&run, writer, 11), TD_OK);
    } else {
        CHECK_INT(run_resume(&run, "auto"), 11);
        CHECK_INT(run_write(&run, writer, 12), TD_OK); // and goes on
        CHECK_INT(run_resume(&run, "auto"), 12);
    }
    td_checkpoint_destroy(writer);
    run_close(&run);
    REQUIRE(td_comm_finish(comm) == TD_OK);
    return test_report();
}
