#!/usr/bin/env bash
# Jobs of launch/slurm on two nodes, started by srun and by mpirun: the ranks find each other, and the adapter has the bits of
# the undisturbed run.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/slurm_cluster.sh"
begin slurm "jobs by srun and mpirun" "${1:-1}"
slurm_start
reference_hash >/dev/null || exit 1
for launcher in srun mpirun; do
    TANDEM_LAUNCHER=$launcher submit "$launcher" cpu.sbatch --nodes=2 --ntasks-per-node=2 --cpus-per-task=1
    await_end "$job"
    expect_code 0
    expect_same_bits "$launcher"
    expect_log "$launcher" '^CPU, 1 thread'
done
pass
