#!/usr/bin/env bash
# Sourced by the Slurm tests, after lib.sh and begin: a private Slurm on this machine, of two nodes n1 and n2 with four processors
# and two GPUs (device nodes of nothing) each. Its own munged, slurmctld and slurmd, all files in one temporary folder, free
# ports; nothing of an installed Slurm is read or written. Works without systemd and cgroups.
#
# slurm_start                           skips the case, saying why, where that is impossible
# submit NAME SCRIPT [OPTION]... [-- ARGUMENT]...   sbatch; sets $job. Output in $work/NAME.log
# await_state, await_end, hurry, field_of JOB ...
# ...and stops by end() of lib.sh, or, when the test itself is killed, by a guardian that looks whether the test lives.

# Cluster-wide words of the processes: each inherits this variable.
slurm_mark() {
    echo "TANDEM_SLURM_FOLDER=$slurm_folder"
}

slurm_need() {
    local program
    PATH=$PATH:/usr/sbin:/sbin
    for program in munged slurmctld slurmd sbatch srun scontrol squeue mpirun; do
        command -v "$program" >/dev/null || skip "no $program (launch/dependencies.sh --tests installs it)"
    done
    [ "$(id -u)" = 0 ] || skip "a private Slurm needs root: slurmd starts jobs as their users"
}

# free_ports N: numbers of ports that nothing listens on, below the range that connections are given.
free_ports() {
    local port found=0 taken
    taken=$(cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | awk '{ sub(/.*:/, "", $2); print $2 }')
    port=$((12000 + ($$ * 37 + RANDOM) % 18000))
    while [ "$found" -lt "$1" ]; do
        port=$((port + 1))
        grep -qix "$(printf %04X "$port")" <<<"$taken" || { echo "$port" && found=$((found + 1)); }
    done
}

slurm_write_config() {
    local ports node gpu host
    mapfile -t ports < <(free_ports 3)
    host=$(hostname -s)
    mkdir -p "$slurm_folder"/{state,n1,n2}
    : >"$slurm_folder/plugstack.conf"
    cat >"$slurm_folder/slurm.conf" <<END
ClusterName=tandem
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$slurm_folder/munge.socket
CredType=cred/munge
MpiDefault=none
MpiParams=ports=$((ports[0] + 10))-$((ports[0] + 30))
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,default_queue_depth=20
PlugStackConfig=$slurm_folder/plugstack.conf
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=4
MessageTimeout=30
SlurmdTimeout=${slurm_node_timeout:-300}
InactiveLimit=0
MinJobAge=300
SlurmctldPidFile=$slurm_folder/slurmctld.pid
SlurmctldLogFile=$slurm_folder/slurmctld.log
StateSaveLocation=$slurm_folder/state
SlurmdSpoolDir=$slurm_folder/%n
SlurmdPidFile=$slurm_folder/%n.pid
SlurmdLogFile=$slurm_folder/%n.log
GresTypes=gpu
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[1]} CPUs=4 RealMemory=2000 Gres=gpu:2
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[2]} CPUs=4 RealMemory=2000 Gres=gpu:2
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP OverTimeLimit=0
END
    # Slurm sets CUDA_VISIBLE_DEVICES to the numbers of device files; these are /dev/null by other names. Where a container may
    # not make any it sets nothing.
    for gpu in 0 1 2 3; do
        mknod "$slurm_folder/gpu$gpu" c 1 3 2>/dev/null || touch "$slurm_folder/gpu$gpu"
    done
    echo "NodeName=n1 Name=gpu File=$slurm_folder/gpu[0-1]" >"$slurm_folder/gres.conf"
    echo "NodeName=n2 Name=gpu File=$slurm_folder/gpu[2-3]" >>"$slurm_folder/gres.conf"
    for node in n1 n2; do
        # The nodes' configuration differs in one thing: where the launcher keeps its sockets.
        mkdir -p "$slurm_folder/conf-$node" "$slurm_folder/pmix-$node"
        ln -s ../slurm.conf ../gres.conf "$slurm_folder/conf-$node/"
        echo "PMIxCliTmpDirBase=$slurm_folder/pmix-$node" >"$slurm_folder/conf-$node/mpi.conf"
    done
}

# Ends what slurm_start started, in any order of things: by the mark in the environment.
slurm_kill() {
    local file pid round
    for round in 1 2 3; do
        for file in /proc/[0-9]*/environ; do
            pid=${file#/proc/}
            pid=${pid%/environ}
            [ "$pid" = "$BASHPID" ] || ! grep -qaz "^$(slurm_mark)\$" "$file" 2>/dev/null || kill -9 "$pid" 2>/dev/null
        done
    done
}

slurm_stop() {
    slurm_kill
    rm -rf "$slurm_folder"
}

# Outlives the test, and cleans up should the test be killed.
slurm_guard() {
    local test=$$
    export -f slurm_kill slurm_mark slurm_stop
    slurm_folder=$slurm_folder work=$work setsid bash -c '
        while kill -0 '"$test"' 2>/dev/null; do sleep 0.3; done
        slurm_stop
        rm -rf "$work"' >/dev/null 2>&1 </dev/null &
    slurm_guardian=$!
    disown
}

slurm_daemon() {
    env "$(slurm_mark)" setsid "$@" >>"$slurm_folder/daemons.log" 2>&1 </dev/null &
    disown # the shell is to say nothing of its end
}

slurm_start() {
    local i node
    slurm_need
    slurm_folder=$work/slurm
    mkdir -m 755 "$slurm_folder"
    chmod 755 "$work"
    on_end+=('slurm_stop; kill "$slurm_guardian" 2>/dev/null')
    slurm_guard
    slurm_write_config
    export SLURM_CONF=$slurm_folder/slurm.conf
    export TANDEM_HOME=$FAULTS_SOURCE TANDEM_PROGRAM=$FAULTS_PROGRAM
    echo "{}" >"$work/config.json"
    # Ranks of both nodes share a host name, and Open MPI would share memory by it.
    export OMPI_MCA_btl=^vader
    srun --mpi=list 2>&1 | grep -q pmix || skip "this Slurm has no pmix plugin"
    dd if=/dev/urandom of="$slurm_folder/munge.key" bs=128 count=1 status=none
    chmod 600 "$slurm_folder/munge.key"
    slurm_daemon munged --foreground --force --key-file="$slurm_folder/munge.key" --socket="$slurm_folder/munge.socket" \
        --pid-file="$slurm_folder/munge.pid" --seed-file="$slurm_folder/munge.seed" --log-file="$slurm_folder/munge.log"
    for i in $(seq 100); do
        [ ! -S "$slurm_folder/munge.socket" ] || break
        sleep 0.1
    done
    slurm_daemon slurmctld -D -f "$SLURM_CONF"
    for node in n1 n2; do
        slurm_daemon slurmd -D -N "$node" -f "$slurm_folder/conf-$node/slurm.conf"
    done
    for i in $(seq 300); do
        [ "$(sinfo -h -N -o %t 2>/dev/null | grep -c idle)" != 2 ] || return 0
        sleep 0.1
    done
    fail "Slurm did not start: $(tail -n 5 "$slurm_folder"/*.log 2>&1)"
}

# submit NAME SCRIPT [SBATCH OPTION]... [-- ARGUMENT]...: one of launch/slurm, with the settings of `arguments NAME`; sets $job.
# The log is $work/NAME.log; of an array's tasks $work/NAME-TASK.log, and their output folders are $runs/NAME/TASK.
submit() {
    local name=$1 script=$2 log=$work/$1.log options=() words kept=() word
    shift 2
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        options+=("$1") && shift
    done
    [ $# -eq 0 ] || shift
    mapfile -t words < <(arguments "$name" "$@")
    for word in "${words[@]:1}"; do
        kept+=("$word")
        [[ $script != array.sbatch || $word != output_dir=* ]] || kept=("${kept[@]::${#kept[@]}-2}")
    done
    [ "$script" != array.sbatch ] || log=$work/$name-%a.log
    job=$(TANDEM_CONFIG=$work/config.json TANDEM_OUTPUT=$runs/$name sbatch --parsable --output="$log" "${options[@]}" \
        "$FAULTS_SOURCE/launch/slurm/$script" "${kept[@]}" 2>"$work/sbatch.log") ||
        fail "sbatch $script: $(cat "$work/sbatch.log")"
    current=$name launcher=$$ # await_step() is to wait although no launcher of its own runs
}

# state_of JOB: as in RUNNING, COMPLETED, FAILED; code_of JOB.
field_of() {
    scontrol --oneliner show job "$1" 2>/dev/null | sed -nE "s/.* $2=([^ ]*).*/\1/p" | head -n 1
}

state_of() {
    field_of "$1" JobState
}

# What Slurm knows of a job that went wrong, and its daemons' last lines.
slurm_says() {
    scontrol --oneliner show job "$1" 2>&1 | grep -oE '(Reason|ExitCode|Restarts|RunTime|StartTime)=[^ ]*' | tr '\n' ' '
    tail -n 8 "$slurm_folder"/*.log 2>&1
}

# await_state JOB REGEX [SECONDS]
await_state() {
    local i state
    for i in $(seq $((${3:-60} * 5))); do
        state=$(state_of "$1")
        [[ ! $state =~ ^($2)$ ]] || return 0
        sleep 0.2
    done
    fail "$current: job $1 is ${state:-gone}, not $2: $(tail -n 3 "$slurm_folder/slurmctld.log")"
}

# await_end JOB [SECONDS]: sets $code to the batch script's.
await_end() {
    await_state "$1" 'COMPLETED|FAILED|TIMEOUT|CANCELLED|NODE_FAIL|BOOT_FAIL' "${2:-90}"
    code=$(field_of "$1" ExitCode)
    code=${code%:*}
}

# hurry JOB: Slurm lets a requeued job rest for two minutes, this makes it a few seconds. None would be too early: for the rest
# of the second the nodes refuse a job whose end they have been told.
hurry() {
    local due
    due=$(date -d "$(field_of "$1" StartTime)" +%s 2>/dev/null) || return 0
    [ "$due" -le $(($(date +%s) + 20)) ] || scontrol update job="$1" StartTime=now+3 2>/dev/null
}

# slurm_daemon_pids REGEX: of this cluster's daemons, by command line.
slurm_daemon_pids() {
    pgrep -f -- "$1.*$slurm_folder"
}
