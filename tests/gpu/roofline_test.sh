#!/usr/bin/env bash
# The roofline's arithmetic against figures worked out elsewhere (GFLOP per token and the bounds of one H200), and that its parts add
# up. usage: roofline_test.sh SOURCE
set -euo pipefail
roofline=$1/benchmarks/roofline/roofline.sh shapes=$1/configs/shapes
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

failed() {
    echo "FAILED: $*"
    exit 1
}

# SHAPE, forward, attention, backward, attention, recompute, tokens/s without and with it; rounded to four digits
"$roofline" --bounds | tr -d '()' | tail -n +2 |
    awk 'function four(x) { return x > 99999 ? int(x / 100 + 0.5) * 100 : int(x / 10 + 0.5) * 10 }
        { print $1, $2, $3, $4, $5, $6, four($7), four($8) }' >"$folder/bounds"
diff - "$folder/bounds" <<'END' || failed "the bounds differ"
llama-3.1-8b 15.63 0.54 16.52 1.34 14.58 24510 16860
qwen3-1.7b 3.71 0.23 4.10 0.59 3.09 100900 72310
qwen3-8b 15.83 0.60 16.82 1.51 14.58 24140 16680
END
echo "ok     GFLOP per token and bounds of three shapes"

"$roofline" "$shapes/llama-3.1-8b" --recompute block --tokens 4096 >"$folder/table"
awk 'NR > 2 && $1 != "all" { ms += $(NF - 1); share += $NF }
    $1 == "all" { all = $2 }
    END { d = ms - all; exit !(NR > 25 && d < 0.2 && d > -0.2 && share > 99 && share < 101) }' "$folder/table" || failed "the parts do not add up: $(cat "$folder/table")"
rate() { "$roofline" "$shapes/qwen3-1.7b" "$@" | awk '$1 == "all" { print $3 }'; }
awk -v a="$(rate)" -v b="$(rate --recompute block)" -v c="$(rate --resident 1)" -v d="$(rate --copy 1e20 --attention 788e12)" \
    'BEGIN { exit !(b < a && a < c && c < d && d < 100911) }' || failed "recomputing, resident copies or endless bandwidth have the wrong sign"
"$roofline" --record >"$folder/record"
for name in llama-3.1-8b qwen3-1.7b; do
    for recompute in none block; do
        [ "$(grep -c "^$name, 8192 tokens in documents of 2048, rank 16, recompute $recompute" "$folder/record")" = 2 ] ||
            failed "the record has not both tables of $name, recompute $recompute"
    done
done
! "$roofline" "$folder" >"$folder/out" 2>&1 && grep -q 'no .*config.json' "$folder/out" || failed "a folder without config.json: $(cat "$folder/out")"
echo "ok     parts add up, and change as they must"
