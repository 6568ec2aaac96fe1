// Faults on purpose, for tests/faults: named points at which a rank dies, stops, is late, returns
// an error or has wrong numbers. The points are compiled in only with TANDEM_FAULTS, for the
// program tandem_faulty; elsewhere they are nothing.
//
// $TANDEM_FAULT is POINT[.DETAIL][:rank=R][:step=S][:nth=N]:ACTION[=ARGUMENT], several separated by
// ';'. It happens the N-th time (default 1; 0: every time) that the point is passed on rank R
// (default: any) in step S (from 1; default: any). Actions: kill, stop (SIGSTOP), segv, abort,
// exit=CODE, delay=MILLISECONDS, fail (TD_ERR_IO), bit (flips one in the point's data), nan (in its
// first number, a float), skip (of a collective). A line on standard error says that it happens.
// Points: start, base, data, step, forward, backward, gradient (data), collective.NAME, update,
// gather, evaluate, snapshot, finish, and checkpoint.PHASE (create, write, flush, close, verify,
// manifest, rename, latest, purge).
#ifndef TANDEM_CORE_FAULT_H
#define TANDEM_CORE_FAULT_H

#include <stddef.h>

#include "runtime/core/status.h"

#ifdef TANDEM_FAULTS

// Any thread. `detail` and `data` may be NULL. *out_skip (may be NULL) is 1 when what follows is to
// be left out.
td_status td_fault_reach(const char *point, const char *detail, void *data, size_t bytes,
                         int *out_skip);

static inline int td_fault_skips(const char *point, const char *detail) {
    int skip = 0;
    return td_fault_reach(point, detail, NULL, 0, &skip) != TD_OK || skip;
}

#define TD_FAULT(point)                   td_fault_reach(point, NULL, NULL, 0, NULL)
#define TD_FAULT_DETAIL(point, detail)    td_fault_reach(point, detail, NULL, 0, NULL)
#define TD_FAULT_DATA(point, data, bytes) td_fault_reach(point, NULL, data, bytes, NULL)
#define TD_FAULT_SKIPS(point, detail)     td_fault_skips(point, detail)

#else

#define TD_FAULT(point)                   TD_OK
#define TD_FAULT_DETAIL(point, detail)    TD_OK
#define TD_FAULT_DATA(point, data, bytes) ((void)(data), (void)(bytes), TD_OK)
#define TD_FAULT_SKIPS(point, detail)     0

#endif

#endif
