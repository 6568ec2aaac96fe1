#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/cli/cli.h"
#include "runtime/core/log.h"

static td_status make(const char *purpose, char out[TD_PATH_MAX]) {
    const char *parent = getenv("TMPDIR");
    char name[64];
    snprintf(name, sizeof name, "tandem-%s-XXXXXX", purpose);
    TD_TRY(td_path_join(out, parent && parent[0] ? parent : "/tmp", name));
    return mkdtemp(out) ? TD_OK
                        : td_fail(TD_ERR_IO, "%s: cannot be made: %s", out, strerror(errno));
}

td_status td_cli_scratch_make(td_comm *comm, const char *purpose, char out[TD_PATH_MAX]) {
    memset(out, 0, TD_PATH_MAX);
    td_status status = td_comm_rank(comm) == 0 ? make(purpose, out) : TD_OK;
    TD_TRY(td_comm_agree(comm, status, "scratch folder"));
    return td_comm_broadcast(comm, out, TD_PATH_MAX, 0, "scratch folder");
}

void td_cli_scratch_remove(const td_comm *comm, const char *folder) {
    // An error of the command itself, recorded before, is the one to report at the end.
    int has_failed = td_error_message()[0] != '\0';
    if (td_comm_rank(comm) != 0 || td_folder_remove_tree(folder) == TD_OK)
        return;
    td_warn("%s is left behind", folder);
    if (!has_failed)
        td_error_clear();
}
