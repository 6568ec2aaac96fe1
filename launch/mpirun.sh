#!/usr/bin/env bash
# mpirun as tandem wants it: quiet, allowed for root in containers, more ranks than cores permitted, and cores
# shared out among the ranks. usage: launch/mpirun.sh RANKS PROGRAM [ARGUMENT]...
set -euo pipefail
ranks=${1:?usage: launch/mpirun.sh RANKS PROGRAM [ARGUMENT]...}
shift
if [ "$(id -u)" -eq 0 ]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
# A host that cannot be reached any more is noticed after 6 to 9 s: sooner than by any rank, since mpirun does not end in order when
# a rank gives up first. A link that is down for a shorter time changes nothing.
exec mpirun --quiet --oversubscribe --bind-to none --mca oob_tcp_keepalive_time 3 --mca oob_tcp_keepalive_intvl 1 \
    --mca oob_tcp_keepalive_probes 6 -n "$ranks" "$@"
