# The parts of a micro-batch; roofline.sh sets the variables and says what they mean. Bytes count what a kernel must read and write
# once; what it reads again from a cache is not counted.

# part(NAME, FLOPS, BYTES, RATE): its time is the larger of both; `again` parts are those of recomputation
function part(label, flops, bytes, rate,    by_flops, by_bytes) {
    by_flops = flops / rate
    by_bytes = bytes / copy
    n++
    labels[n] = label
    of_flops[n] = flops
    of_bytes[n] = bytes
    seconds[n] = by_flops > by_bytes ? by_flops : by_bytes
    bound[n] = by_flops > by_bytes ? "compute" : "memory"
    total += seconds[n]
}

# One projection: adds up weights, and the values that come in and go out.
function projection(rows, columns) {
    weights += rows * columns
    ins += columns
    outs += rows
}

function forward(when, with_down,    w, i, o) {
    w = weights - (with_down ? 0 : hidden * ffn)
    i = ins - (with_down ? 0 : ffn)
    o = outs - (with_down ? 0 : hidden)
    part("linear" when, 2 * w * T * L, (2 * w + 2 * (i + o) * T) * L, gemm)
    part("dequantize NF4" when, 0, (1 - resident) * nf4_bytes * w * L, gemm)
    # xa = x A^T; y = s xa B^T is written, and read by the product with W that is added to it, unless both are one.
    part("LoRA" when, 2 * rank * (i + o) * T * L, 2 * (i + (fused ? 0 : 2 * o)) * T * L, gemm)
    part("attention" when, 4 * q * pairs * L, 2 * (2 * q + 2 * kv) * T * L, attention)
    # Norm: read, write; two of them, and those of the heads. Rotation: read, write.
    part("norms" when, 0, 2 * (4 * hidden + head_norms * 2 * (q + kv)) * T * L, gemm)
    part("rotation" when, 0, 2 * 2 * (q + kv) * T * L, gemm)
    part("SwiGLU" when, 0, 2 * 3 * ffn * T * L, gemm)
    part("residuals" when, 0, 2 * (with_down ? 6 : 3) * hidden * T * L, gemm)
}

function backward() {
    part("linear, back", 2 * weights * T * L, (2 * weights + 2 * (ins + outs) * T) * L, gemm)
    part("dequantize NF4, back", 0, (1 - resident) * nf4_bytes * weights * L, gemm)
    # dyb reads dy; dB reads dy; dA reads x; dx = dyb A is written, and read by the product added to it, unless both are one.
    part("LoRA, back", 4 * rank * (ins + outs) * T * L, 2 * (2 * outs + (fused ? 1 : 3) * ins) * T * L, gemm)
    # Two passes, for dq and for dk and dv: scores and their gradients are computed in both, 7 products instead of 5.
    part("attention, back", (passes == 1 ? 10 : 14) * q * pairs * L, 2 * (2 * (3 * q + 2 * kv) + 2 * q + q + 2 * kv) * T * L, attention)
    part("norms, back", 0, 2 * (2 * 4 * hidden + head_norms * 3 * (q + kv)) * T * L, gemm)
    part("rotation, back", 0, 2 * 2 * (q + kv) * T * L, gemm)
    part("SwiGLU, back", 0, 2 * 5 * ffn * T * L, gemm)
}

function head(    logits, again) {
    logits = T * V
    again = T / chunk # the weight is read for every chunk
    part("LM head", 2 * logits * hidden, 2 * V * hidden * again + 4 * logits, gemm)
    # Logits in fp32: read for the sum, read again and overwritten by their gradient, which is rounded to bf16.
    part("cross entropy", 0, 4 * 3 * logits + 6 * logits, gemm)
    part("LM head, back", 2 * logits * hidden, 2 * V * hidden * again + 2 * logits, gemm)
}

function print_table(    i) {
    printf "%s, %d tokens in documents of %d, rank %d, recompute %s, %d %% of the layers resident in bf16; predicted, not measured\n",
        name, T, seq, rank, recompute, 100 * resident
    printf "%-26s %12s %10s  %-8s %9s %7s\n", "part", "GFLOP", "GB", "bound by", "ms", "share"
    for (i = 1; i <= n; i++)
        printf "%-26s %12.1f %10.2f  %-8s %9.2f %6.1f%%\n", labels[i], of_flops[i] * 1e-9, of_bytes[i] * 1e-9, bound[i],
            1e3 * seconds[i], 100 * seconds[i] / total
    printf "%-26s %12s %10s  %-8s %9.2f   %.0f tokens/s\n", "all", "", "", "", 1e3 * total, T / total
}

# Products only, at the GEMM rate, and all of a block computed again.
function print_bounds(    attend, ahead, back, more) {
    attend = 4 * q * (seq + 1) / 2 * L
    ahead = 2 * weights * L + 2 * V * hidden + 2 * adapters + attend
    back = 2 * weights * L + 2 * V * hidden + 4 * adapters + 2.5 * attend
    more = 2 * weights * L + 2 * adapters + attend
    printf "%-14s %14.2f (%5.2f) %14.2f (%5.2f) %10.2f %10.0f %10.0f\n", name, ahead * 1e-9, attend * 1e-9, back * 1e-9, 2.5 * attend * 1e-9,
        more * 1e-9, gemm / (ahead + back), gemm / (ahead + back + more)
}

BEGIN {
    T = tokens; L = num_hidden_layers; V = vocab_size
    hidden = hidden_size; ffn = intermediate_size
    q = num_attention_heads * head_dim
    kv = num_key_value_heads * head_dim
    pairs = T * (seq + 1) / 2 # a query sees half of its document
    nf4_bytes = 0.5 + 1 / 64 + 4 / (64 * 256) + 2 # codes, absmax, its absmax; and bf16 written
    projection(q, hidden)
    projection(kv, hidden)
    projection(kv, hidden)
    projection(hidden, q)
    projection(ffn, hidden)
    projection(ffn, hidden)
    projection(hidden, ffn)
    adapters = rank * (ins + outs) * L
    if (mode == "bounds") {
        print_bounds()
        exit
    }
    part("embedding", 0, 2 * 2 * hidden * T, gemm)
    forward("", 1)
    head()
    # What the last product of a block gives is kept: only the inputs are needed again.
    if (recompute == "block") forward(", again", 0)
    backward()
    part("gradients to sums", 0, 20 * adapters, gemm) # fp32 read, 64-bit sums read and written
    part("AdamW", 0, 36 * adapters / accumulation, gemm)
    if (mode == "rate") printf "%.0f\n", T / total
    else print_table()
}
