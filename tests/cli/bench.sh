#!/usr/bin/env bash
# The benchmarks from outside: that they verify, that damage is noticed, what is in a record, and that the model of collectives finds
# again what its points were made from. No times are judged. usage: bench.sh TANDEM SOURCE
set -uo pipefail
tandem=$1 source=$2
shape=$source/tests/fixtures/train100
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export OMP_NUM_THREADS=1
failed=0

report() {
    if [ "$1" -eq 0 ]; then
        echo "ok     $2"
    else
        echo "FAILED $2"
        sed 's/^/    /' "$folder/out" "$folder/err"
        failed=1
    fi
}

# bench RANKS ARGUMENT...
bench() {
    local ranks=$1
    shift
    timeout 100 "$source/launch/mpirun.sh" "$ranks" "$tandem" bench "$@" >"$folder/out" 2>"$folder/err"
}

# has NAME PATTERN FILE
has() {
    grep -qE -- "$2" "$3"
    report $? "$1"
}

# refuses NAME PATTERN ARGUMENT...
refuses() {
    local name=$1 pattern=$2 got=0
    shift 2
    timeout 30 "$tandem" bench "$@" >"$folder/out" 2>"$folder/err" || got=$?
    [ "$got" -eq 2 ] && [ ! -s "$folder/out" ] && [ "$(wc -l <"$folder/err")" -eq 1 ] && grep -qE "^error: .*$pattern" "$folder/err"
    report $? "$name"
}

# A record names what was run and on what, and has the samples.
for ranks in 1 2; do
    bench "$ranks" checkpoint --parameters 5001 --saves 3 --set page_elements=1000 --record "$folder/checkpoint.json"
    has "checkpoint, $ranks ranks" '^verified: ' "$folder/out"
    for part in '"benchmark":"checkpoint"' '"command":"tandem bench checkpoint --parameters 5001 --saves 3' '"commit":"[0-9a-z]+' \
        '"device":"CPU"' "\"ranks\":$ranks," '"load_average":[0-9]' '"cores":[0-9]' '"trained_parameters":5001,' \
        '"save_seconds":\{"median":[0-9.e-]+,"p10":[0-9.e-]+,"p90":[0-9.e-]+,"samples":\[[0-9.e-]+,[0-9.e-]+,[0-9.e-]+\]\}'; do
        has "checkpoint record, $ranks ranks: $part" "$part" "$folder/checkpoint.json"
    done
done
[ "$(wc -l <"$folder/checkpoint.json")" -eq 1 ]
report $? "one record, one line"
# All parameters and all of one rank's 12-byte states; of 6 pages rank 0 of 2 has three.
has "what rank 0 of 2 copies" '"snapshot_bytes":44004,' "$folder/checkpoint.json"
bench 2 checkpoint --shape "$shape" --saves 1 --steps 2 --seq 16 --set lora_r=2
has "checkpoints beside real steps" '^of a step: +blocked' "$folder/out"

bench 2 comm --max-bytes 65536 --rounds 2 --shape "$shape" --seq 16 --steps 2 --set lora_r=2 --set page_elements=1000 --json
for part in '"op":"reduce_i64","bytes":1024,' '"op":"reduce_f32","bytes":32768,' '"op":"gather_f32","bytes":512,' \
    '"op":"allreduce_i64","bytes":65536,.*"traffic_bytes":65536' '"checks_seconds":[0-9.e-]+' '"exact_share":' '"ranks":1024,"packed":1'; do
    has "comm record: $part" "$part" "$folder/out"
done
bench 1 comm --max-bytes 4096 --rounds 2
has "comm of one rank" '^verified: ' "$folder/out"

bench 2 load --shape "$shape" --folder "$folder/weights" --rounds 1 --seq 16
has "load" '^verified: ' "$folder/out"
has "load from an image" '^image: .* of the read rate' "$folder/out"
weights=$folder/weights/model.safetensors
cp "$weights" "$folder/kept"
bench 1 load --shape "$shape" --folder "$folder/weights" --rounds 1 --seq 16 --set load_in_4bit=false
has "weights are used again" '^verified: ' "$folder/out"
cmp -s "$weights" "$folder/kept"
report $? "and not written again"
# One bit of the last tensor.
printf '\x3e' | dd of="$weights" bs=1 seek=$(($(stat -c %s "$weights") - 1)) conv=notrunc 2>/dev/null
got=0
bench 1 load --shape "$shape" --folder "$folder/weights" --rounds 1 --seq 16 || got=$?
[ "$got" -eq 7 ] && grep -q 'not the one whose weights were written' "$folder/err"
report $? "other weights are noticed"

# Points of alpha 10 us and 2 GB/s: 2 ranks have one stage, 3 have two; a page more is a latency more.
point() {
    awk -v op="$1" -v ranks="$2" 'BEGIN {
        stages = ranks > 2 ? 2 : 1
        printf "{\"benchmark\":\"comm\",\"ranks\":%d,\"load_average\":1,\"collectives\":[", ranks
        for (bytes = 1024; bytes <= 67108864; bytes *= 16) {
            pages = bytes / 8 / 1048576
            printf "%s{\"op\":\"%s\",\"bytes\":%d,\"median\":%.12g}", (bytes > 1024 ? "," : ""), op, bytes,
                stages * (10e-6 * (pages > 1 ? pages : 1) + bytes / 2e9)
        }
        print "],\"imbalance\":[{\"ranks\":8,\"packed\":1.25,\"not_packed\":1.5}]}"
    }'
}
{ point reduce_i64 2 && point reduce_i64 3; } >"$folder/points"
awk -f "$source/benchmarks/scaling/model.awk" "$folder/points" >"$folder/out" 2>"$folder/err"
has "the model finds alpha and beta" '^reduce_i64 +10\.00 +2\.00 +0% \(0%\) +0% \(0%\)$' "$folder/out"
has "and says what was not measured" '^PREDICTED, nothing of this was measured' "$folder/out"
has "with the sampler's imbalance" '^ +8 .* 1\.250 +80\.0%$' "$folder/out"

# Every part of a step has calls and time, and together they are not more than the step.
bench 1 step --shape "$shape" --seq 16 --steps 2 --accumulation 2 --breakdown --record "$folder/step.json" \
    --set gradient_checkpointing=block --set logits_chunk_tokens=8
has "parts of a step, in words" '^linear layers, recompute ' "$folder/out"
has "fp32 products are the CPU's" '"float32_matmul_precision":"highest".*"gemm_peak_operands":"fp32"' "$folder/step.json"
has "model flops" '^MFU: +[0-9.]+ % = model / step / GEMM ceiling' "$folder/out"
awk '{
        record = $0
        match(record, /"step_seconds":[0-9.e+-]+,"parts"/)
        step = substr(record, RSTART + 15) + 0
        sub(/.*"parts":\[/, "", record)
        n = split(record, parts, /\},?/)
        for (i = 1; i <= n; i++) {
            if (parts[i] !~ /"part"/) continue
            name = seconds = calls = parts[i]
            gsub(/.*"part":"|".*/, "", name); sub(/.*"seconds":/, "", seconds); sub(/.*"calls":/, "", calls)
            if (name !~ /^-/) sum += seconds
            if (calls + 0 > 0 && seconds + 0 > 0) found[name] = calls + 0
        }
        m = split("linear layers, forward|linear layers, recompute|linear layers, backward|attention, forward|attention, backward|" \
            "norms, forward|rope, forward|glu, backward|embedding|head product, forward|head product, backward|loss|" \
            "gradient accumulation|gradient norm|update", wanted, "|")
        for (i = 1; i <= m; i++) if (!(wanted[i] in found)) { print "no time for " wanted[i]; bad = 1 }
        # 2 layers and 2 micro-batches; block recomputes all projections but the last of a layer.
        if (found["linear layers, forward"] != 28 || found["linear layers, recompute"] != 24) { print "calls are miscounted"; bad = 1 }
        if (sum > step * 1.0001) { print "parts take " sum " of " step; bad = 1 }
    } END { exit bad || NR != 1 }' "$folder/step.json" >"$folder/out" 2>"$folder/err"
report $? "parts of a step add up"
! grep -qE ':(nan|-?inf|,|\})|,,' "$folder/step.json"
report $? "numbers of the record are JSON's"
bench 2 step --shape "$shape" --seq 16 --steps 1 --breakdown --json
has "parts on 2 ranks" '"part":"communication exposed"' "$folder/out"

bench 1 step --shape "$shape" --seq 16 --steps 1 --json --set float32_matmul_precision=medium
has "products in bf16 have their own ceiling" '"float32_matmul_precision":"medium".*"gemm_peak_operands":"bf16","fp32_gemm_peak_flops":[0-9]' "$folder/out"
grep -q '^CPU, 1 thread, products in bf16' "$folder/err"
report $? "and the start says so"

bench 1 ops --shape "$shape" --seq 12 --tokens 20 --set page_elements=500 --record "$folder/ops.json"
has "operations are verified" '^verified: ' "$folder/out"
for op in linear_forward linear_backward attention_backward cross_entropy adamw_8bit; do
    has "operation $op in the record" "\"op\":\"$op\",\"name\":\"[^\"]+\",\"formula\":\"[^\"]+\",\"flops\":[0-9.e+]+,\"bytes\":[0-9.e+]+,\"of_ceiling\"" "$folder/ops.json"
done
"$source/benchmarks/plot.sh" "$folder/step.json" >"$folder/out" 2>"$folder/err" && grep -q '^</svg>$' "$folder/out"
report $? "a record can be drawn"

refuses "no benchmark" 'name what to time first'
refuses "another benchmark" 'name what to time first' disk
refuses "neither shape nor parameters" 'either --shape' checkpoint
refuses "both" 'either --shape' checkpoint --shape "$shape" --parameters 5
refuses "steps of no shape" '--steps' checkpoint --parameters 5 --steps 2
refuses "no saves" '--saves in' checkpoint --parameters 5 --saves 0
refuses "too small" 'max-bytes is in' comm --max-bytes 5
refuses "no rounds" '--rounds in' comm --rounds 0
refuses "sequences longer than micro-batches" '--tokens in' ops --shape "$shape" --seq 50 --tokens 20
refuses "no shape of operations" '--shape FOLDER is missing' ops
refuses "no shape" '--shape FOLDER is missing' load
refuses "near option" 'did you mean --saves' checkpoint --save 3
for name in step ops checkpoint comm load; do
    timeout 30 "$tandem" bench "$name" --help >"$folder/out" 2>"$folder/err"
    has "help of $name" "^usage: tandem bench $name " "$folder/out"
done
exit "$failed"
