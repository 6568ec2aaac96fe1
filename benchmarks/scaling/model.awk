# What scaling.sh measured, as tables; an alpha-beta model fitted to it, with its error; and what the model says of GPUs that were
# not there. Times of collectives: latency alpha per stage and message, beta per byte.
# usage: awk -f model.awk [-v NAME=VALUE]... RECORD
#
# Host (measured): a message goes down a binomial tree of ceil(log2 n) stages, page by page.
# GPUs (published, not measured here): alpha and beta of NCCL all-reduce on 8 H200 are fitted to its published times, network cards
# reach 46-48 GB/s. A reduction or broadcast of s bytes on m nodes of g GPUs, one card each, takes latency + s / rate:
#   ring  latency m (g - 1) a_h + (m - 1) a_n      tree  ceil(log2 g) a_h + ceil(log2 m) a_n      nvls  2 a_h + ceil(log2 m) a_n
#   rate  the bus in a node; min(bus, g cards) between nodes
# with a_h a fourteenth of the all-reduce's alpha (2 (8 - 1) hops) and a_n alpha_network: no published figure, an assumption.
# Pages follow each other. The reduction hides behind half a micro-batch (its backward pass), the gather behind nothing.

function number(text, key,    at) {
    at = match(text, "\"" key "\": ?[-+0-9.e]+")
    if (!at)
        return ""
    at = substr(text, RSTART, RLENGTH)
    sub(/^[^:]*: ?/, "", at)
    return at + 0
}
function word(text, key,    at) {
    if (!match(text, "\"" key "\": ?\"[^\"]*\""))
        return ""
    at = substr(text, RSTART, RLENGTH)
    sub(/^[^:]*: ?"/, "", at)
    sub(/"$/, "", at)
    return at
}
function log2_up(n,    stages, reach) {
    for (reach = 1; reach < n; reach *= 2)
        stages++
    return stages + 0
}
function larger(a, b) { return a > b ? a : b }
function smaller(a, b) { return a < b ? a : b }

# Least squares of relative errors over points from..to: t = alpha x + beta y; neither is negative.
function fit(from, to,    i, xx, xy, yy, x1, y1, det) {
    for (i = from; i <= to; i++) {
        xx += (fx[i] / ft[i]) ^ 2
        xy += fx[i] * fy[i] / ft[i] ^ 2
        yy += (fy[i] / ft[i]) ^ 2
        x1 += fx[i] / ft[i]
        y1 += fy[i] / ft[i]
    }
    det = xx * yy - xy * xy
    alpha = beta = 0
    if (det > 1e-12 * xx * yy) {
        alpha = (x1 * yy - y1 * xy) / det
        beta = (y1 * xx - x1 * xy) / det
    }
    if (alpha <= 0 || det <= 1e-12 * xx * yy) {
        alpha = 0
        beta = y1 / yy
    } else if (beta < 0) {
        beta = 0
        alpha = x1 / xx
    }
}
# Sorted relative errors of points from..to: error_middle, error_most.
function errors(from, to,    i, j, n, e, list) {
    n = 0
    for (i = from; i <= to; i++) {
        e = (alpha * fx[i] + beta * fy[i]) / ft[i] - 1
        e = e < 0 ? -e : e
        for (j = n++; j > 0 && list[j - 1] > e; j--)
            list[j] = list[j - 1]
        list[j] = e
    }
    error_middle = list[int((n - 1) / 2)]
    error_most = list[n - 1]
}

BEGIN {
    page = page ? page : 1048576
    parameters = parameters ? parameters : 41943040 # Llama-3.1-8B, rank 16, seven projections
    rate = rate ? rate : 18000                      # tokens/s of one GPU: this project's goal for it, not a measurement
    tokens = tokens ? tokens : 8192                 # of a micro-batch
    batches = batches ? batches : 4                 # micro-batches of a rank and step
    per_node = per_node ? per_node : 8
    card = card ? card : 47e9
    alpha_network = alpha_network ? alpha_network : 10e-6
    layers = layers ? layers : 32
}
/"machine"/ { machine = $0 }
/"scaling": "strong"/ { strong[number($0, "ranks")] = $0; kept_strong[++n_strong] = number($0, "ranks") }
/"scaling": "weak"/ { weak[number($0, "ranks")] = $0; kept_weak[++n_weak] = number($0, "ranks") }
/"benchmark": ?"comm"/ {
    ranks = number($0, "ranks")
    step_part = $0
    if (sub(/.*"step":/, "", step_part))
        parts[ranks] = step_part
    loads[ranks] = number($0, "load_average")
    n = split($0, objects, /\{"op":/)
    for (i = 2; i <= n; i++) {
        object = "\"op\":" objects[i]
        point_op[++n_points] = word(object, "op")
        point_ranks[n_points] = ranks
        point_bytes[n_points] = number(object, "bytes")
        point_time[n_points] = number(object, "median")
    }
    n = split($0, objects, /\{"ranks":/)
    for (i = 2; i <= n; i++) {
        object = "\"ranks\":" objects[i]
        if (number(object, "packed") != "")
            packed[number(object, "ranks")] = number(object, "packed")
    }
}

function scaling_table(    i, n, line) {
    print "strong scaling: the same micro-batches by more ranks; weak: one micro-batch a rank. Efficiency against the first line"
    printf "%6s %10s %22s %8s %14s\n", "ranks", "step s", "p10 to p90", "eff.", "waiting"
    for (i = 1; i <= n_strong; i++) {
        n = kept_strong[i]
        line = strong[n]
        printf "%6d %10.3f %10.3f - %9.3f %7.1f%% %13.1f%%  strong\n", n, number(line, "seconds"), number(line, "seconds_p10"),
            number(line, "seconds_p90"),
            100 * number(strong[kept_strong[1]], "seconds") * kept_strong[1] / number(line, "seconds") / n,
            100 * number(line, "wait_seconds") / number(line, "seconds")
    }
    for (i = 1; i <= n_weak; i++) {
        n = kept_weak[i]
        line = weak[n]
        printf "%6d %10.3f %10.3f - %9.3f %7.1f%% %13.1f%%  weak\n", n, number(line, "seconds"), number(line, "seconds_p10"),
            number(line, "seconds_p90"), 100 * number(weak[kept_weak[1]], "seconds") / number(line, "seconds"),
            100 * number(line, "wait_seconds") / number(line, "seconds")
    }
}
function parts_table(    i, n) {
    print "\nof a step, by parts measured alone: exact sums (add, reduction, checks, less what fp32 would take), their checks, waiting"
    for (i = 1; i <= n_weak; i++) {
        n = kept_weak[i]
        if (n in parts)
            printf "%6d %9.2f%% %9.2f%% %9.2f%%   load average %.1f\n", n, 100 * number(parts[n], "exact_share"),
                100 * number(parts[n], "checks_share"), 100 * number(parts[n], "exposed_share"), loads[n]
    }
}
# Points of an op with these ranks (0: two and more) to the fit's list; returns how many.
function collect(op, ranks,    i, n, item) {
    for (i = 1; i <= n_points; i++) {
        if (point_op[i] != op || point_ranks[i] < 2 || (ranks && point_ranks[i] != ranks))
            continue
        n++
        item = op ~ /i64/ ? 8 : 4
        stages = log2_up(point_ranks[i]) * (op ~ /allreduce/ ? 2 : 1)
        fx[n] = stages * larger(1, point_bytes[i] / item / page)
        fy[n] = stages * point_bytes[i]
        ft[n] = point_time[i]
    }
    return n + 0
}
function host_model(    i, op, n, ops, count, most) {
    print "\nalpha-beta model of this machine's transport, ceil(log2 ranks) stages"
    printf "%-15s %12s %12s %28s %30s\n", "", "alpha us", "GB/s", "error, middle (most)", "of the most ranks, from 2 alone"
    count = split("reduce_i64 reduce_f32 gather_f32 allreduce_i64", ops, " ")
    for (i = 1; i <= n_points; i++)
        most = larger(most, point_ranks[i])
    for (i = 1; i <= count; i++) {
        op = ops[i]
        n = collect(op, 0)
        if (n < 3)
            continue
        fit(1, n)
        errors(1, n)
        printf "%-15s %12.2f %12s %17.0f%% (%.0f%%)", op, alpha * 1e6, (beta > 0 ? sprintf("%.2f", 1e-9 / beta) : "-"),
            100 * error_middle, 100 * error_most
        if (most > 2) {
            fit(1, collect(op, 2))
            n = collect(op, most)
            errors(1, n)
            printf " %21.0f%% (%.0f%%)", 100 * error_middle, 100 * error_most
        }
        print ""
    }
}
function published_model(    i, sizes, times, n) {
    n = split("32768 1048576 16777216 134217728", sizes, " ")
    split("40e-6 46e-6 134e-6 584e-6", times, " ")
    for (i = 1; i <= n; i++) {
        fx[i] = 1
        fy[i] = sizes[i]
        ft[i] = times[i]
    }
    fit(1, n)
    errors(1, n)
    hop = alpha / 14
    bus = 2 * 7 / 8 / beta
    printf "\npublished NCCL all-reduce on 8 H200: alpha %.1f us, %.0f GB/s by size, %.0f GB/s on the bus; error", alpha * 1e6,
        1e-9 / beta, bus * 1e-9
    for (i = 1; i <= n; i++)
        printf " %+.0f%%", 100 * ((alpha + beta * sizes[i]) / times[i] - 1)
    printf " at 32 KiB, 1, 16, 128 MiB\n"
}
function latency(kind, gpus,    nodes, g) {
    nodes = gpus <= per_node ? 1 : gpus / per_node
    g = smaller(gpus, per_node)
    if (kind == "ring")
        return nodes * (g - 1) * hop + (nodes - 1) * alpha_network
    if (kind == "tree")
        return log2_up(g) * hop + log2_up(nodes) * alpha_network
    return 2 * hop + log2_up(nodes) * alpha_network
}
# Seconds of a step that communication adds.
function exposed(kind, gpus,    speed, pages, each, sums, gather, hidden, batch) {
    speed = gpus <= per_node ? bus : smaller(bus, per_node * card)
    pages = larger(1, parameters / page)
    each = latency(kind, gpus)
    sums = pages * each + 8 * parameters / speed
    gather = pages * each + 4 * parameters / speed
    batch = tokens / rate
    hidden = batch / 2 * (layers - 1) / layers
    return larger(sums / layers, sums - hidden) + gather + 2 * each
}
function predict(    i, k, n, sizes, kinds, share, compute, spread) {
    compute = batches * tokens / rate
    printf "\nPREDICTED, nothing of this was measured: %d parameters, %d micro-batches of %d tokens a rank at %d tokens/s (assumed)\n",
        parameters, batches, tokens, rate
    printf "exposed communication as a share of the step, and weak efficiency with the sampler's imbalance (%d GPUs a node)\n", per_node
    printf "%6s %10s %10s %10s %12s %12s\n", "GPUs", "ring", "tree", "nvls", "imbalance", "efficiency"
    n = split("8 16 64 128 256 1024", sizes, " ")
    split("ring tree nvls", kinds, " ")
    for (i = 1; i <= n; i++) {
        printf "%6d", sizes[i]
        for (k = 1; k <= 3; k++) {
            share = exposed(kinds[k], sizes[i])
            printf " %9.2f%%", 100 * share / (compute + share)
        }
        spread = (sizes[i] in packed) ? packed[sizes[i]] : 1
        share = smaller(exposed("tree", sizes[i]), exposed("ring", sizes[i]))
        printf " %12.3f %11.1f%%\n", spread, 100 * compute / (compute * spread + share)
    }
}
END {
    if (!n_points) {
        print "error: no record of bench comm in the file" >"/dev/stderr"
        exit 3
    }
    print machine
    scaling_table()
    parts_table()
    host_model()
    published_model()
    predict()
}
