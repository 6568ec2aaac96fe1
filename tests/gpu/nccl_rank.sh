#!/bin/sh
# Lets ranks that share one GPU talk by NCCL: each takes itself for the only one on its machine.
# usage: mpirun -n N nccl_rank.sh PROGRAM [ARGUMENT]...
export NCCL_HOSTID="rank-${OMPI_COMM_WORLD_RANK:?to be started by mpirun}"
exec "$@"
