#!/usr/bin/env bash
# Predicts the time of each part of a micro-batch from its operations and bytes: the larger of FLOPs over the GEMM rate and bytes
# over the copy rate, as the CUDA backend does them, one kernel after the other. Nothing here was measured on hardware but the two
# rates (788 TFLOP/s and 4.3 TB/s, on one H200); attention's is FlashAttention-2's published one. Gaps between kernels, and products
# that are too small for the GEMM rate, are not in it: it is a bound, not a promise.
# usage: benchmarks/roofline/roofline.sh SHAPE [--tokens N] [--seq N] [--rank N] [--recompute none|block] [--resident SHARE]
#                                        [--fused 0|1] [--passes 2|1] [--accumulation N] [--gemm FLOPS] [--copy BYTES] [--attention FLOPS] [--chunk N]
#        benchmarks/roofline/roofline.sh --summary    tokens/s of Llama-3.1-8B, Qwen3-1.7B and Qwen3-8B in every mode
#        benchmarks/roofline/roofline.sh --bounds     GFLOP per token, and the bound when nothing but they took time
#        benchmarks/roofline/roofline.sh --record     all of it, and the parts of Llama-3.1-8B and Qwen3-1.7B with and without
#                                                     recomputation and resident copies: benchmarks/results/predicted-h200.txt
#   SHAPE        folder with a config.json          --tokens   of a micro-batch (8192)       --seq   tokens of a document (2048)
#   --resident   share of the layers whose bf16 copies stay in GPU memory, so that NF4 is not dequantized at every use (0)
#   --fused      1: LoRA's share of y and dx is added within the product with the weight (0)   --passes   of attention's backward (2)
#   --chunk      trained tokens whose logits exist at once (256)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
shapes=$here/../../configs/shapes
usage() { sed -n '6,15s/^# //p' "$0" >&2; exit 2; }

# Numbers of a config.json as awk assignments.
model() {
    awk '{
        for (key in wanted) if (match($0, "\"" key "\": *[0-9]+")) { split(substr($0, RSTART, RLENGTH), at, ":"); found[key] = at[2] + 0 }
    }
    BEGIN { split("hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim vocab_size", names, " ")
        for (i in names) wanted[names[i]] = 1 }
    END {
        if (!found["hidden_size"] || !found["num_attention_heads"]) exit 1
        if (!found["num_key_value_heads"]) found["num_key_value_heads"] = found["num_attention_heads"]
        if (!found["head_dim"]) found["head_dim"] = found["hidden_size"] / found["num_attention_heads"]
        for (key in wanted) printf "-v %s=%s ", key, found[key]
    }' "$1/config.json" || { echo "roofline: $1/config.json names no shape" >&2; exit 1; }
    grep -qE '"model_type": *"(qwen3|gemma3)' "$1/config.json" && echo "-v head_norms=1" || echo "-v head_norms=0"
}

# usage: predict SHAPE MODE [NAME=VALUE]...
predict() {
    local shape=$1 mode=$2 values=() value
    shift 2
    [ -f "$shape/config.json" ] || { echo "roofline: there is no $shape/config.json" >&2; exit 1; }
    for value in tokens=8192 seq=2048 rank=16 recompute=none resident=0 fused=0 passes=2 accumulation=4 gemm=788e12 copy=4.3e12 attention=298e12 \
        chunk=256 "$@"; do
        values+=(-v "$value")
    done
    # shellcheck disable=SC2046
    awk $(model "$shape") -v mode="$mode" -v name="$(basename "$shape")" "${values[@]}" -f "$here/roofline.awk" </dev/null
}

case ${1:-} in
--bounds)
    printf '%-14s %22s %22s %10s %10s %10s\n' "GFLOP/token" "forward (attention)" "backward (attention)" "recompute" "tok/s" "recomputed"
    for name in llama-3.1-8b qwen3-1.7b qwen3-8b; do predict "$shapes/$name" bounds; done
    ;;
--summary)
    echo "predicted tokens/s of one H200, micro-batches of 8192 tokens in documents of 2048, rank 16; not measured"
    printf '%-14s %-10s %20s %20s %20s %20s\n' shape recompute "dequantized each use" "+ copies resident" "+ LoRA fused" "+ one-pass attention"
    for name in llama-3.1-8b qwen3-1.7b qwen3-8b; do
        for recompute in none block; do
            rate() { predict "$shapes/$name" rate recompute=$recompute "$@"; }
            printf '%-14s %-10s %20s %20s %20s %20s\n' "$name" $recompute "$(rate)" "$(rate resident=1)" "$(rate resident=1 fused=1)" \
                "$(rate resident=1 fused=1 passes=1)"
        done
    done
    ;;
--record)
    cd "$here/../.."
    echo "Predicted, not measured on hardware; made by benchmarks/roofline/roofline.sh --record at commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)." \
        "Constants: one H200 with 788 TFLOP/s GEMM and 4.3 TB/s copy as measured elsewhere, attention at FlashAttention-2's published" \
        "298 TFLOP/s. Dequantization under the product before it (dequantize_ahead) gains no more than resident copies do."
    show() {
        printf '\n$ benchmarks/roofline/roofline.sh %s\n' "$*"
        "$here/roofline.sh" "$@"
    }
    show --bounds
    show --summary
    for name in llama-3.1-8b qwen3-1.7b; do
        for recompute in none block; do
            for resident in 1 0; do show "configs/shapes/$name" --recompute $recompute --resident $resident; done
        done
    done
    ;;
-* | "") usage ;;
*)
    shape=$1 values=()
    shift
    while [ $# -gt 0 ]; do
        case $1 in
        --tokens | --seq | --rank | --recompute | --resident | --fused | --passes | --accumulation | --gemm | --copy | --attention | --chunk)
            [ $# -gt 1 ] || usage
            values+=("${1#--}=$2")
            ;;
        *) usage ;;
        esac
        shift 2
    done
    predict "$shape" table ${values[@]+"${values[@]}"}
    ;;
esac
