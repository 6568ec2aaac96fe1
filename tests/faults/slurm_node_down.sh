#!/usr/bin/env bash
# A node that Slurm takes for dead: it requeues the job, while the old processes still stand on the node and go on later, beside
# the new ones on another node. They are fenced, and the result is that of a run that nothing happened to.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/slurm_cluster.sh"
begin slurm "a job that is requeued while its old processes live" "${1:-1}"
slurm_start
# Slow, and each piece of the run with a log of its own: what would carry the words of the old one is gone with its node.
cat >"$work/slow" <<END
#!/usr/bin/env bash
export TANDEM_FAULT="step:nth=0:delay=300"
exec "$FAULTS_PROGRAM" "\$@" 2>>"$work/piece\${SLURM_RESTART_COUNT:-0}.log"
END
chmod +x "$work/slow"
export TANDEM_PROGRAM=$work/slow
submit run preemptible.sbatch --gpus-per-node=0 --nodes=1 --ntasks-per-node=2 --cpus-per-task=1 --time=5 \
    -- --set collective_deadline_seconds=30
await_step run "$(random 3 6)"
node=$(field_of "$job" NodeList)
mapfile -t old_pids < <(pids)
kill -STOP "${old_pids[@]}"
kill -9 $(slurm_daemon_pids "slurmd .*-N $node ") # the node does not answer any more
scontrol update nodename="$node" state=DOWN reason=test || fail "the node cannot be set down"
await_state "$job" PENDING 30
hurry "$job"
await_state "$job" RUNNING 60
other=$(field_of "$job" NodeList)
[ "$other" != "$node" ] || fail "the job runs on $node, which is down"
await piece1 'resumed from'
await_step run $(($(resumed_from piece1) + 1))
kill -CONT "${old_pids[@]}"
await piece0 'error: .*another incarnation .* this one .* is stale' 30
await_end "$job"
expect_code 0
expect_same_bits run
[ "$(sed -nE 's/^\{"step": ([0-9]+), "epoch".*/\1/p' "$runs/run/metrics.jsonl")" = "$(seq "$steps")" ] ||
    fail "run: the steps in metrics.jsonl are not 1 to $steps, each once"
pass "$node down, went on on $other"
