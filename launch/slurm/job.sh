#!/usr/bin/env bash
# The last line of a Slurm batch script: runs tandem on every task of the job, tells it when Slurm announces the job's end, and
# puts the job back into the queue when it left a checkpoint to go on from.
# usage: exec launch/slurm/job.sh [--requeue] COMMAND [ARGUMENT]...         tandem's, as in "train CONFIG --resume auto"
#   --requeue            code 75 (stopped on request after a checkpoint) requeues the job
#   TANDEM_LAUNCHER      srun (the default where Slurm has the pmix plugin) or mpirun
#   TANDEM_PROGRAM       the program; else bin/tandem (a bundle) or build/release/tandem beside this folder
#   TANDEM_MAX_REQUEUES  100
#
# "exec" makes this the process that --signal=B:USR1@SECONDS goes to.
set -uo pipefail
home=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
requeue=""
[ "${1:-}" != --requeue ] || { requeue=yes && shift; }

if [ -z "${SLURM_JOB_ID:-}" ] || [ $# -eq 0 ]; then
    sed -n 4,8p "${BASH_SOURCE[0]}" >&2
    echo "this runs in a batch script: sbatch launch/slurm/single_node.sbatch" >&2
    exit 2
fi
program=${TANDEM_PROGRAM:-}
for candidate in "$home/bin/tandem" "$home/build/release/tandem"; do
    [ -n "$program" ] || [ ! -x "$candidate" ] || program=$candidate
done
[ -x "$program" ] || { echo "error: no tandem in $home/bin or $home/build/release: build it, or set TANDEM_PROGRAM" >&2 && exit 2; }
[ ! -x "$home/bin/mpirun" ] || PATH=$home/bin:$PATH

launcher=${TANDEM_LAUNCHER:-}
if [ -z "$launcher" ]; then
    launcher=mpirun
    ! srun --mpi=list 2>&1 | grep -q pmix || launcher=srun
fi

# One thread per processor of a task, unless somebody has chosen.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}

# Ranks end each other by themselves and within their deadline, so srun is not to kill those that are still about to leave with
# 75 because the first one has (KillOnBadExit). A rank that was killed leaves the others at most --wait.
with_srun() {
    exec srun --mpi=pmix --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=0 --wait=60 "$program" "$@"
}

# mpirun starts one daemon per node, by an srun that reads the job's variables. The daemon is to have all GPUs of the job on its
# node, not one task's: each rank then takes the one of its local rank.
share_gpus_by_node() {
    local tasks gpus=${SLURM_GPUS_PER_TASK:-}
    [ -n "$gpus" ] || return 0
    tasks=${SLURM_TASKS_PER_NODE%%(*}
    if [[ $SLURM_TASKS_PER_NODE == *,* ]]; then
        echo "error: by mpirun, --gpus-per-task needs the same number of tasks on all nodes (now $SLURM_TASKS_PER_NODE):" \
            "ask for --ntasks-per-node and --gpus-per-node" >&2
        exit 2
    fi
    unset SLURM_GPUS_PER_TASK SLURM_TRES_PER_TASK SLURM_GPU_BIND
    export SLURM_GPUS_PER_NODE=${gpus%"${gpus##*:}"}$((tasks * ${gpus##*:})) # with the type, as in a100:2
}

with_mpirun() {
    share_gpus_by_node
    if [ "$(id -u)" -eq 0 ]; then
        export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    fi
    exec mpirun --quiet --bind-to none --mca oob_tcp_keepalive_time 3 --mca oob_tcp_keepalive_intvl 1 \
        --mca oob_tcp_keepalive_probes 6 -n "$SLURM_NTASKS" -x OMP_NUM_THREADS "$program" "$@"
}

case $launcher in
srun | mpirun) ;;
*) echo "error: TANDEM_LAUNCHER is \"$launcher\"; expected srun or mpirun" >&2 && exit 2 ;;
esac

# Both launchers pass SIGUSR1 on to every rank; mpirun does not pass on SIGTERM.
ranks="" asked="" interrupted=""
ask_to_stop() {
    asked=yes interrupted=yes
    echo "job $SLURM_JOB_ID: asked to stop; the ranks write a checkpoint" >&2
    [ -z "$ranks" ] || kill -USR1 "$ranks" 2>/dev/null
}
trap ask_to_stop USR1 TERM
"with_$launcher" "$@" &
ranks=$!

# The signal also ends the wait. After the one that told the launcher's code there is nothing to wait for: 127.
code=0 interrupted=yes
while [ -n "$interrupted" ]; do
    interrupted=""
    wait "$ranks"
    told=$?
    [ "$told" -eq 127 ] || code=$told
done
# Ranks that were asked before they had set up for it die of SIGUSR1. They had done nothing that could be lost.
[ "$code" -ne 138 ] || [ -z "$asked" ] || code=75

# A task of an array by its own name: the number of its first task stands for the whole array.
job=$SLURM_JOB_ID
[ -z "${SLURM_ARRAY_TASK_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID

# What was cancelled stays cancelled.
is_to_go_on() {
    local state
    state=$(scontrol --oneliner show job "$job" 2>/dev/null)
    [[ $state == *JobState=RUNNING* || $state == *Reason=TimeLimit* ]]
}

go_on_later() {
    local restarts=${SLURM_RESTART_COUNT:-0}
    if [ "$restarts" -ge "${TANDEM_MAX_REQUEUES:-100}" ]; then
        echo "job $job was requeued $restarts times already (TANDEM_MAX_REQUEUES): not once more" >&2
        return
    fi
    echo "job $job: stopped after a checkpoint, requeued" >&2
    trap - USR1 TERM
    scontrol requeue "$job" && exec sleep 60 # Slurm ends this; leaving with 75 would make it a failed job for a moment
}

if [ "$code" -eq 75 ] && [ -n "$requeue" ] && is_to_go_on; then
    go_on_later
fi
exit "$code"
