#!/usr/bin/env bash
# Which GPU a rank gets from Slurm, by srun and mpirun, --gpus-per-node and --gpus-per-task, on one node and two: emulated GPUs,
# each with a rank of its own (the program refuses anything else), and the bits of one rank on one of them.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/slurm_cluster.sh"
begin slurm "a GPU of its own for each rank" "${1:-1}"
[ -e "${FAULTS_GPU_MODULE:-}" ] || skip "FAULTS_GPU_MODULE names no emulated GPU module"
slurm_start
[ -c "$slurm_folder/gpu0" ] || skip "this container may not make device nodes, which fake GPUs are"
export TANDEM_GPU_MODULE=$FAULTS_GPU_MODULE CUDA_HOST_GPUS=4 CUDA_HOST_VISIBLE=1
settings=(--set device=cuda --set transport=mpi --set max_steps=1 --set save_steps=0)
run alone 1 "${settings[@]}"
expect_code 0

# Both nodes number their GPUs from 0, which are different ones all the same: n2 has the emulation's third and fourth.
cat >"$work/on_node" <<END
#!/usr/bin/env bash
[ "\$SLURMD_NODENAME" != n2 ] || CUDA_VISIBLE_DEVICES=\$(tr 01 23 <<<"\$CUDA_VISIBLE_DEVICES")
echo "visible: \$SLURMD_NODENAME \$CUDA_VISIBLE_DEVICES"
exec "$FAULTS_PROGRAM" "\$@"
END
chmod +x "$work/on_node"
export TANDEM_PROGRAM=$work/on_node

# job_on LAUNCHER VISIBLE SCRIPT OPTION...: what the ranks see, sorted, and their result.
job_on() {
    local how=$1 visible=$2 name seen
    shift 2
    name=$(tr -cd 'a-z0-9' <<<"$how$*")
    TANDEM_LAUNCHER=$how submit "$name" "$@" --cpus-per-task=1 -- "${settings[@]}"
    await_end "$job"
    expect_code 0
    seen=$(sed -n 's/^visible: //p' "$work/$name.log" | sort | tr '\n' ' ')
    [ "$seen" = "$visible" ] || fail "$name: the ranks saw the GPUs \"$seen\", expected \"$visible\""
    [ "$(hash_of "$name")" = "$(hash_of alone)" ] || fail "$name: the adapter differs from that of one rank"
}

job_on srun "n1 0,1 n1 0,1 " single_node.sbatch --gpus-per-node=2 --ntasks-per-node=2
job_on srun "n1 0 n1 1 n2 2 n2 3 " multi_node.sbatch --gpus-per-node=0 --gpus-per-task=1 --ntasks-per-node=2
job_on mpirun "n1 0,1 n1 0,1 n2 2,3 n2 2,3 " multi_node.sbatch --gpus-per-node=2 --ntasks-per-node=2
job_on mpirun "n1 0,1 n1 0,1 " single_node.sbatch --gpus-per-node=0 --gpus-per-task=1 --ntasks-per-node=2
pass
