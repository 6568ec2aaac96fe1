# Sourced after lib.sh: two hosts on this machine, each a network namespace with a host name of its own, joined by a veth pair.
# make_hosts; then start_on_hosts NAME RANKS_A RANKS_B [OPTION]...; cut_link, mend_link.

make_hosts() {
    command -v ip >/dev/null || skip "there is no ip (iproute2)"
    tag=$(printf '%04x' "$((($$ * 7 + RANDOM) % 65536))")
    host_a=tda$tag host_b=tdb$tag
    on_end+=("pkill -9 -f $mark; ip netns del $host_a 2>/dev/null; ip netns del $host_b 2>/dev/null")
    { ip netns add "$host_a" && ip netns add "$host_b" &&
        ip link add "va$tag" netns "$host_a" type veth peer name "vb$tag" netns "$host_b"; } 2>"$work/ip.log" ||
        skip "cannot make network namespaces here: $(tail -n 1 "$work/ip.log")"
    address_a=10.213.7.1 address_b=10.213.7.2
    ip -n "$host_a" address add $address_a/24 dev "va$tag"
    ip -n "$host_b" address add $address_b/24 dev "vb$tag"
    local host
    for host in "$host_a" "$host_b"; do
        ip -n "$host" link set lo up
    done
    mend_link
    # What mpirun calls instead of ssh: HOST COMMAND...
    cat >"$work/agent" <<END
#!/bin/sh
shift
exec ip netns exec $host_b unshare --uts sh -c 'hostname $host_b; exec sh -c "\$0"' "\$*"
END
    chmod +x "$work/agent"
    await_link
}

await_link() {
    local i
    for i in $(seq 50); do
        # Nobody listens there, and that is an answer.
        [[ $(ip netns exec "$host_a" timeout 1 bash -c "exec 3<>/dev/tcp/$address_b/9" 2>&1) != *refused* ]] || return 0
        sleep 0.1
    done
    skip "the two network namespaces do not reach each other"
}

cut_link() {
    ip -n "$host_a" link set "va$tag" down
}

mend_link() {
    ip -n "$host_a" link set "va$tag" up
    ip -n "$host_b" link set "vb$tag" up
}

# As start(), with ranks on both hosts; the launcher is on the first.
start_on_hosts() {
    local name=$1 ranks_a=$2 ranks_b=$3 words
    shift 3
    mapfile -t words < <(arguments "$name" "$@")
    setsid timeout --foreground --kill-after=5 "${FAULTS_LIMIT:-90}" ip netns exec "$host_a" \
        unshare --uts sh -c "hostname $host_a; exec \"\$0\" \"\$@\"" "$FAULTS_SOURCE/launch/mpirun.sh" $((ranks_a + ranks_b)) \
        --host "$address_a:$ranks_a,$address_b:$ranks_b" --mca plm_rsh_agent "$work/agent" --mca plm rsh \
        --mca btl_tcp_if_include 10.213.7.0/24 --mca oob_tcp_if_include 10.213.7.0/24 \
        "$FAULTS_PROGRAM" "${words[@]}" >"$work/$name.log" 2>&1 &
    launcher=$! started_at=$SECONDS current=$name
}
