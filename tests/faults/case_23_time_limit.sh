#!/usr/bin/env bash
# Slurm: jobs that are asked to stop because their time runs out, are requeued twice and finish, one run by srun and an array of
# three seeds by mpirun. No step is done twice or lost, and the adapters have the bits of runs that nothing happened to.
FAULTS_STEPS=40 # the first two pieces of a run do at most 16 in the half minute until Slurm looks at its clock
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/slurm_cluster.sh"
begin 23 "time limit and requeue, twice, also as an array" "$1"
slurm_start

# A run's first two pieces are slow, so that Slurm's signal finds them at work.
cat >"$work/slow" <<END
#!/usr/bin/env bash
[ "\${SLURM_RESTART_COUNT:-0}" -ge 2 ] || export TANDEM_FAULT="step:rank=0:nth=0:delay=$(random 2000 2600)"
exec "$FAULTS_PROGRAM" "\$@"
END
chmod +x "$work/slow"
export TANDEM_PROGRAM=$work/slow
deadline=(--set collective_deadline_seconds=30)
limits=(--time=1 --signal=B:USR1@30 --cpus-per-task=1 --gpus-per-node=0)

submit plain preemptible.sbatch "${limits[@]}" --nodes=2 --ntasks-per-node=1 -- "${deadline[@]}"
jobs=("$job")
TANDEM_LAUNCHER=mpirun submit sweep array.sbatch "${limits[@]}" --ntasks-per-node="$(random 1 2)" -- "${deadline[@]}"
jobs+=("${job}_0" "${job}_1" "${job}_2")

# Meanwhile the runs to compare with.
for task in 0 1 2; do
    run "straight$task" 1 --set seed=$((task + 1))
    expect_code 0
done
reference_hash >/dev/null || exit 1

is_over() {
    local job state over=yes
    for job in "${jobs[@]}"; do
        state=$(state_of "$job")
        [ "$state" = COMPLETED ] || over=""
        [[ ! $state =~ ^(FAILED|TIMEOUT|CANCELLED|NODE_FAIL)$ ]] || fail "job $job is $state: $(slurm_says "$job")"
        [ "$state" != PENDING ] || hurry "$job"
    done
    [ -n "$over" ]
}
until is_over; do
    [ $SECONDS -lt 170 ] || fail "the jobs did not end: $(squeue -h)"
    sleep 0.5
done

# check_run NAME LOG: requeued twice (on a machine that is busy even the third piece may run out of time), each piece went on
# where the one before had stopped, steps 1 to 40, each once.
check_run() {
    local name=$1 log=$work/$2.log stops resumes
    stops=$(sed -nE 's/^stopped on request after step ([0-9]+)$/\1/p' "$log")
    resumes=$(sed -nE 's/^resumed from .*: ([0-9]+) steps are done$/\1/p' "$log")
    [ "$(wc -w <<<"$stops")" -ge 2 ] || fail "$name: stopped after steps \"$stops\", expected two stops"
    [ "$stops" = "$resumes" ] || fail "$name: stopped after steps \"$stops\", went on from \"$resumes\""
    [ "$(grep -c ', requeued$' "$log")" = "$(wc -w <<<"$stops")" ] || fail "$name: not requeued after every stop"
    [ "$(sed -nE 's/^\{"step": ([0-9]+), "epoch".*/\1/p' "$runs/$name/metrics.jsonl")" = "$(seq "$steps")" ] ||
        fail "$name: the steps in metrics.jsonl are not 1 to $steps, each once"
}

check_run plain plain
expect_same_bits plain
for task in 0 1 2; do
    check_run "sweep/$task" "sweep-$task"
    [ "$(hash_of "sweep/$task")" = "$(hash_of "straight$task")" ] || fail "sweep $task: the adapter differs from the undisturbed run's"
done
[ "$(hash_of straight0)" != "$(hash_of straight1)" ] || fail "seeds 1 and 2 made the same adapter"
pass
