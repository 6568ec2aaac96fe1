#!/usr/bin/env bash
# plan from outside: the field's figures as they are printed, JSON with the same numbers, a model folder without weights, and questions
# that have no answer. usage: plan.sh TANDEM SOURCE
set -uo pipefail
. "$(dirname "$0")/checks.sh"
tandem=$1 source=$2
qwen=$source/configs/shapes/qwen3-1.7b llama=$source/configs/shapes/llama-3.1-8b

plan() {
    timeout 60 "$tandem" plan "$@" >"$folder/out" 2>"$folder/err"
}

# has NAME LINE: standard output has this line; runs of spaces count as one.
has() {
    sed -E 's/ +/ /g; s/^ //' "$folder/out" | grep -qxF -- "$2"
    report $? "$1"
}

# refuses NAME CODE PATTERN OPTION...: one line of error, nothing on standard output.
refuses() {
    local name=$1 code=$2 pattern=$3 got=0
    shift 3
    plan "$@" || got=$?
    [ "$got" -eq "$code" ] && [ ! -s "$folder/out" ] && [ "$(wc -l <"$folder/err")" -eq 1 ] &&
        grep -qE -- "^error: .*$pattern" "$folder/err"
    report $? "$name"
}

plan --model "$qwen" --tokens 140.42M --epochs 2 --entropy 6.4 --ranks 4 --tokens-per-second 5000 --price-per-hour 2.5
report $? "a plan from a shape alone"
for line in 'embed_tokens 311.16' 'q_proj 117.44' 'k_proj 58.72' 'v_proj 58.72' 'o_proj 117.44' 'gate_proj 352.32' \
    'up_proj 352.32' 'down_proj 352.32' 'lm_head 311.16 (tied, counted once)' 'without embeddings 1409.41' \
    '4 4.4 64.44 114.56 0.036 0.964 Over' '8 8.7 32.22 57.28 0.059 0.941 Over' '16 17.4 16.11 28.64 0.096 0.904 Over' \
    '32 34.9 8.06 14.32 0.155 0.845 Over' '64 69.7 4.03 7.16 0.252 0.748 Over' '128 139.5 2.01 3.58 0.410 0.590 Over' \
    '256 278.9 1.01 1.79 0.665 0.335 Optimal <- recommended' '512 557.8 0.50 0.90 0.895 0.105 Knee' \
    '1024 1115.7 0.25 0.45 0.448 0.552 Under' 'recommended rank: 256 (ratio nearest 1.8)' \
    'NF4 block scales: 0.127 bits per parameter (0.500 with fp32 scales)' \
    'tokens: 280,840,000 in 2 epochs' 'time: 15.6 h at 5000 tokens/s' 'cost: 156.02 = 4 ranks x 15.602 h x 2.5'; do
    has "$line" "$line"
done
cp "$folder/out" "$folder/by_folder"
plan --model "$qwen/config.json" --tokens 140420000 --epochs 2 --entropy 6.4 --ranks 4 --tokens-per-second 5000 --price-per-hour 2.5
# All but what this process itself takes.
diff <(grep -vE 'program and libraries|total  ' "$folder/by_folder") <(grep -vE 'program and libraries|total  ' "$folder/out") >/dev/null
report $? "a folder or its config.json"

plan --model "$llama" --set lora_r=64
has "trainable parameters" 'LoRA, r = 64, 224 modules: 167,772,160 trainable of 8,198,033,408 (2.0465 %)'
has "no data, no steps" 'steps: not known without --tokens or --data'
! grep -qE 'Over|recommended' "$folder/out"
report $? "no data, no recommendation"

# Kinds of data stand for their entropy.
for kind in instruction:4.5 text:6.5 code:2.5; do
    plan --model "$qwen" --tokens 1M --entropy "${kind%:*}"
    grep -q ", ${kind#*:} bits/token" "$folder/out"
    report $? "entropy of ${kind%:*}"
done

plan --model "$qwen" --tokens 140.42M --epochs 2 --entropy 6.4 --gpu-memory 80G --json
report $? "JSON"
flat=$(tr -d ' \t\n' <"$folder/out")
for part in '"without_embeddings":1409410048}' '"lm_head_is_tied":true' '"recommended_rank":256' \
    '{"rank":4,"parameters":4358144,"tokens_per_parameter":64.4402' '"limit_bytes":83214991360,"recompute":"none"' \
    '"device":"gpu","ranks":1,' '"dataset_tokens":140420000,"dataset_rows":null,"epochs":2,"tokens":280840000,' '"cost":null}}'; do
    [[ "$flat" == *"$part"* ]]
    report $? "JSON has $part"
done

# A config of a run, with data that is not there yet and a model that has its weights.
sed "s|launch/quickstart/base|$source/&|" "$source/configs/quickstart.json" >"$folder/run.json"
plan "$folder/run.json" --tokens 64000
has "batches of a config" 'steps: 50, 50 an epoch, of 2 micro-batches with up to 640 tokens (taken to be full)'
plan "$folder/run.json" --tokens 64000 --ranks 3
has "more ranks than micro-batches" 'note: 2 of 3 ranks have work: gradient_accumulation_steps counts the micro-batches of all'
plan "$folder/run.json" --set packing=false --rows 100
has "rows without packing" 'steps: 50, 50 an epoch, of 2 micro-batches with up to 128 tokens'
plan "$folder/run.json" --set max_steps=7
has "steps of a config" 'steps: 7'

# Counted in a token store that a run made.
cp "$source/tests/fixtures/train100/data.jsonl" "$folder/data.jsonl"
run=(--set model_name_or_path="$source/tests/fixtures/train100" --set max_length=64 --set lora_r=2
    --set gradient_accumulation_steps=5 --set micro_batch_tokens=96 --set num_train_epochs=2)
timeout 60 "$tandem" train "${run[@]}" --set train_files="$folder/data.jsonl" --set output_dir="$folder/out.run" >"$folder/out" 2>"$folder/err"
report $? "a run"
steps=$(grep -c '"loss"' "$folder/out.run/metrics.jsonl")
plan "${run[@]}" --data "$folder/out.run/data/train.h5"
grep -qE "^steps: +$steps, " "$folder/out" && ! grep -q 'taken to be full' "$folder/out"
report $? "as many steps as the run ($steps)"

got=0
plan --model "$qwen" --gpu-memory 1G || got=$?
[ "$got" -eq 4 ] && grep -q 'does not fit into 992.0 MiB' "$folder/out" &&
    grep -qE '^error: memory plan: .* MiB of GPU memory per rank are needed' "$folder/err"
report $? "what does not fit is shown, with code 4"
plan --model "$qwen" --gpu-memory 3G --tokens 1M
grep -qE 'fits into 2976.0 MiB with recompute (norms_mlp|block)' "$folder/out"
report $? "the policy follows the memory"

refuses "no model" 2 'name a config'
refuses "no such model" 3 'nowhere: no such file' --model "$folder/nowhere"
refuses "no such config" 2 'nowhere\.json' "$folder/nowhere.json"
refuses "a folder without config.json" 3 'no config.json there' --model "$folder"
refuses "another file" 3 'expected the folder of a model' --model "$folder/run.json"
mkdir "$folder/broken" "$folder/strange"
echo '{"model_type": ' >"$folder/broken/config.json"
refuses "malformed config.json" 3 'broken/config\.json' --model "$folder/broken"
sed 's/Qwen3ForCausalLM/T5ForConditionalGeneration/' "$qwen/config.json" >"$folder/strange/config.json"
refuses "unknown architecture" 3 'T5ForConditionalGeneration.*not supported' --model "$folder/strange"
for bad in 0 -5 x 1e400 nan 12Q 3G 1e16 ''; do
    refuses "tokens '$bad'" 2 '--tokens: ' --model "$qwen" --tokens "$bad"
done
for bad in 0 -1 200 poem nan; do
    refuses "entropy '$bad'" 2 '--entropy: ' --model "$qwen" --entropy "$bad"
done
refuses "no ranks" 2 '--ranks is in' --model "$qwen" --ranks 0
refuses "no epochs" 2 '--epochs must be above 0' --model "$qwen" --epochs 0
refuses "no speed" 2 '--tokens-per-second must be above 0' --model "$qwen" --tokens-per-second 0
refuses "negative price" 2 '--price-per-hour is in' --model "$qwen" --price-per-hour -1
refuses "memory without size" 2 '--gpu-memory: ' --model "$qwen" --gpu-memory large
refuses "a GPU of no size" 2 '--gpu-memory 80G' --model "$qwen" --set device=cuda
refuses "tokens twice" 2 'give either' --model "$qwen" --data x.h5 --tokens 5
refuses "no such store" 3 'x\.h5' --model "$qwen" --data "$folder/x.h5"
refuses "rows are no store" 3 'data\.jsonl' --model "$qwen" --data "$folder/data.jsonl"
refuses "no such module" 2 'x_proj' --model "$qwen" --set 'target_modules=["x_proj"]'
refuses "near option" 2 'did you mean --tokens' --model "$qwen" --token 5
timeout 60 "$source/launch/mpirun.sh" 2 "$tandem" plan --model "$qwen" --tokens 1M >"$folder/out" 2>"$folder/err"
[ $? -eq 0 ] && [ "$(grep -c '^parameters' "$folder/out")" -eq 1 ]
report $? "one of several ranks prints"
"$tandem" plan --help >"$folder/out" 2>&1
grep -q '^usage: tandem plan' "$folder/out" && grep -q '^example: tandem plan' "$folder/out"
report $? "help"
exit "$failed"
