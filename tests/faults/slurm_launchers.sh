#!/usr/bin/env bash
# Jobs of launch/slurm on two nodes, started by srun and by mpirun: the ranks find each other, the adapter has the bits of the
# undisturbed run, codes and ends arrive at Slurm, and only what stopped after a checkpoint is requeued.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/slurm_cluster.sh"
begin slurm "jobs by srun and mpirun" "${1:-1}"
slurm_start
reference_hash >/dev/null || exit 1
endless=(--set max_steps=400000)
two_nodes=(--nodes=2 --ntasks-per-node=1 --cpus-per-task=1)

for how in srun mpirun; do
    export TANDEM_LAUNCHER=$how
    submit "$how" cpu.sbatch --nodes=2 --ntasks-per-node=2 --cpus-per-task=1
    await_end "$job"
    expect_code 0
    expect_same_bits "$how"
    expect_log "$how" '^CPU, 1 thread'

    submit "$how-killed" preemptible.sbatch "${two_nodes[@]}" --gpus-per-node=0 -- "${endless[@]}"
    await_step "$how-killed" 3
    kill -9 "$(pids | tail -n 1)"
    break_now
    await_end "$job" 40
    expect_failure
    expect_gone_within 10

    submit "$how-cancelled" preemptible.sbatch "${two_nodes[@]}" --gpus-per-node=0 -- "${endless[@]}"
    await_step "$how-cancelled" 3
    scancel "$job"
    await_state "$job" CANCELLED 40
    expect_gone_within 10
    [ "$(committed "$how-cancelled")" -gt 0 ] || fail "$how-cancelled: no checkpoint"
done

# By hand too, a job that was asked to stop is requeued, but only so often.
TANDEM_MAX_REQUEUES=0 submit often preemptible.sbatch "${two_nodes[@]}" --gpus-per-node=0 -- "${endless[@]}"
await_step often 3
scancel --batch --signal=USR1 "$job"
await_end "$job" 40
expect_code 75
expect_log often 'not once more'
pass
