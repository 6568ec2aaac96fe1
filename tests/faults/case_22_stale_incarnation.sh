#!/usr/bin/env bash
# A requeued run starts while its old processes still live, held at the start, between two steps, in an evaluation or in the
# middle of a save. When they go on, beside the new ones or after their end, they change nothing any more, and say why.
. "$(dirname "$0")/lib.sh"
begin 22 "an old incarnation goes on beside the new one" "$1"
ranks=$(random 1 3) step=$(random 2 10)
moments=("" "" collective.incarnation evaluate snapshot checkpoint.{create,write,flush,verify,manifest,rename})
moment=${moments[$((seed % ${#moments[@]}))]} after_the_end=$(random 0 1) nth=$(random 1 4)
evaluated=(--set eval_files="$cache/heldout.jsonl" --set eval_steps=3 --set load_best_model_at_end=true
    --set learning_rate=1e-3)
[ "$moment" = evaluate ] && after_the_end=1 || evaluated=() # what is best shall not be the old one's
[ "$moment" != collective.incarnation ] || nth=1

# signal_old NAME: to every process of the old incarnation.
signal_old() {
    kill "-$1" "${old_pids[@]}" 2>/dev/null
}

held=step:nth=0:delay=150 # or the run could be over before it is stopped
[ -z "$moment" ] || held=$moment:rank=0:nth=$nth:stop
TANDEM_FAULT=$held start run "$ranks" "${evaluated[@]}"
if [ -n "$moment" ]; then
    await run '^fault:'
else
    await_step run "$step"
    sleep "0.0$(random 0 9)"
fi
mapfile -t old_pids < <(pids)
signal_old STOP
[ ${#old_pids[@]} = "$ranks" ] || fail "${#old_pids[@]} processes of the old incarnation, expected $ranks"
old_launcher=$launcher
mv "$work/run.log" "$work/old.log"

TANDEM_FAULT="step:nth=0:delay=150" start run "$(random 1 3)" "${evaluated[@]}" --resume auto
await run '(resumed from|starting from the first step)'
if [ "$after_the_end" = 1 ]; then
    finish
    expect_code 0
else
    sleep "0.$(random 1 9)"
fi
new_launcher=$launcher
launcher=$old_launcher current="the old incarnation"
break_now
signal_old CONT
finish
expect_code 5
expect_log old '^error: .*another incarnation .* this one .* is stale'
expect_one_error old
if [ "$after_the_end" = 0 ]; then
    launcher=$new_launcher current=run
    finish
    expect_code 0
fi

[ "$(sed -nE 's/^\{"step": ([0-9]+), "epoch".*/\1/p' "$runs/run/metrics.jsonl")" = "$(seq "$steps")" ] ||
    fail "run: the steps in metrics.jsonl are not 1 to $steps, each once"
if [ "$moment" = evaluate ]; then
    run straight 1 "${evaluated[@]}"
    expect_code 0
    for folder in adapter best_adapter; do
        cmp -s "$runs/run/$folder/adapter_model.safetensors" "$runs/straight/$folder/adapter_model.safetensors" ||
            fail "run: its $folder differs from the undisturbed run's"
    done
else
    expect_same_bits run
fi
pass "${moment:-after step $step}, $ranks ranks, went on $([ "$after_the_end" = 1 ] && echo after || echo beside) the new one"
