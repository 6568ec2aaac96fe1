# Horizontal bars, one group below the other. See plot.sh.

# The value behind the first "key" of the text; "" without one.
function field(text, key) {
    if (!match(text, "\"" key "\": ?(\"[^\"]*\"|[-+0-9.eE]+)"))
        return ""
    text = substr(text, RSTART, RLENGTH)
    sub("^\"" key "\": ?", "", text)
    gsub("\"", "", text)
    return text
}

function escaped(text) {
    gsub("&", "\\&amp;", text)
    gsub("<", "\\&lt;", text)
    return text
}

function last_part(path) {
    sub(".*/", "", path)
    return path
}

function products(record) {
    return field(record, "float32_matmul_precision") == "medium" ? ", products in bf16" : ""
}

# The median of what `list` holds, numbers between spaces.
function median(list, sorted, n, i, j, moved) {
    n = split(list, sorted, " ")
    for (i = 2; i <= n; i++) {
        moved = sorted[i] + 0
        for (j = i - 1; j >= 1 && sorted[j] + 0 > moved; j--)
            sorted[j + 1] = sorted[j]
        sorted[j + 1] = moved
    }
    return sorted[int((n + 1) / 2)] + 0
}

function text_at(x, y, class, anchor, text) {
    body = body sprintf("<text x=\"%.1f\" y=\"%.1f\" class=\"%s\" text-anchor=\"%s\">%s</text>\n", x, y, class, anchor, escaped(text))
}

function bar_at(y, class, width) {
    body = body sprintf("<rect x=\"%d\" y=\"%.1f\" width=\"%.1f\" height=\"12\" class=\"%s\"/>\n", label_width, y, width, class)
}

function heading(text) {
    top += 34
    text_at(8, top, "head", "start", text)
    top += 10
}

# A bar of `value`, a tick at `bound` when that is above 0, and the number behind it.
function bar(name, class, value, bound, most, number, end) {
    end = most > 0 ? plot_width * value / most : 0
    text_at(label_width - 8, top + 10, "label", "end", name)
    bar_at(top, class, end)
    if (bound > 0)
        body = body sprintf("<path d=\"M%.1f %.1fv16\" class=\"bound\"/>\n", label_width + plot_width * bound / most, top - 2)
    if (bound > value)
        end = plot_width * bound / most
    text_at(label_width + end + 6, top + 10, "label", "start", number)
    top += 18
}

BEGIN {
    label_width = 300
    plot_width = 420
}

# Steps: one bar for each variant of a file, the median of its lines.
function add_step(line, rate, what) {
    rate = field(line, "tokens_per_second")
    if (rate == "")
        rate = field(line, "tokens_per_s")
    if (rate == "" || line ~ /"scaling"/ || line ~ /"benchmark": ?"(comm|load|ops|checkpoint)"/)
        return
    what = field(line, "variant")
    if (what == "")
        what = "tandem, " last_part(field(line, "shape")) ", seq " field(line, "seq") products(line) (line ~ /"command":"[^"]*gradient_checkpointing=block/ ? ", recompute" : "")
    if (!((FILENAME, what) in rates)) {
        variants[FILENAME] = variants[FILENAME] (variants[FILENAME] == "" ? "" : "|") what
        if (!(FILENAME in has_steps))
            step_files[++n_step_files] = FILENAME
        has_steps[FILENAME] = 1
    }
    rates[FILENAME, what] = rates[FILENAME, what] " " rate
}

/"tokens_per_s(econd)?"/ {
    add_step($0)
}

/"breakdown": ?\{/ {
    breakdowns[++n_breakdowns] = $0
}

/"scaling": ?"(strong|weak)"/ {
    scaled[++n_scaled] = $0
}

function draw_steps(i, j, n, names, most, value) {
    for (i = 1; i <= n_step_files; i++) {
        n = split(variants[step_files[i]], names, "|")
        most = 0
        for (j = 1; j <= n; j++)
            if (median(rates[step_files[i], names[j]]) > most)
                most = median(rates[step_files[i], names[j]])
        heading("tokens/s, median: " last_part(step_files[i]))
        for (j = 1; j <= n; j++) {
            value = median(rates[step_files[i], names[j]])
            bar(names[j], names[j] ~ /^tandem/ ? "ours" : "peer", value, 0, most, sprintf("%.1f", value))
        }
    }
}

function draw_breakdown(record, parts, n, i, most, seconds, bound) {
    heading("ms of a step by part, | is its bound: " last_part(field(record, "shape")) ", seq " field(record, "seq") products(record) ", " field(record, "device"))
    sub(/.*"parts": ?\[/, "", record)
    n = split(record, parts, /\},?/)
    for (i = 1; i <= n; i++)
        if (parts[i] ~ /"part"/ && field(parts[i], "seconds") + 0 > most)
            most = field(parts[i], "seconds") + 0
    for (i = 1; i <= n; i++) {
        seconds = field(parts[i], "seconds") + 0
        bound = field(parts[i], "bound_seconds") + 0
        if (parts[i] !~ /"part"/ || seconds < most / 500)
            continue
        bar(field(parts[i], "part"), field(parts[i], "part") ~ /^-/ ? "of" : "ours", seconds, bound < most ? bound : most, most,
            sprintf("%.3g", seconds * 1e3))
    }
}

# Efficiency: strong, time of one rank over ranks times time; weak, time of one rank over time.
function draw_scaling(i, kind, ranks, one, share) {
    heading("efficiency over ranks")
    for (i = 1; i <= n_scaled; i++) {
        kind = field(scaled[i], "scaling")
        ranks = field(scaled[i], "ranks")
        if (!(kind in one))
            one[kind] = field(scaled[i], "seconds") * (kind == "strong" ? ranks : 1)
        share = one[kind] / field(scaled[i], "seconds") / (kind == "strong" ? ranks : 1)
        bar(kind ", " ranks (ranks == 1 ? " rank" : " ranks"), kind == "strong" ? "ours" : "of", share < 1.2 ? share : 1.2, 1, 1.2, sprintf("%.0f %%", 100 * share))
    }
}

END {
    draw_steps()
    for (b = 1; b <= n_breakdowns; b++)
        draw_breakdown(breakdowns[b])
    if (n_scaled)
        draw_scaling()
    if (body == "") {
        print "error: no record of steps, parts or scaling in the files" >"/dev/stderr"
        exit 1
    }
    printf "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" font-family=\"sans-serif\">\n", label_width + plot_width + 90, top + 12
    print "<style>.head{font-size:14px;font-weight:bold}.label{font-size:12px}.ours{fill:#2b6cb0}.of{fill:#90cdf4}.peer{fill:#a0aec0}.bound{stroke:#c53030;stroke-width:2}</style>"
    print "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>"
    printf "%s</svg>\n", body
}
