#!/bin/bash
#SBATCH --job-name=distill
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300   # five minutes before the end, this script is told
#SBATCH --requeue
#SBATCH --open-mode=append

torchrun --standalone --nproc-per-node="${SLURM_GPUS_ON_NODE:-8}" -m registry.cli --resume auto "$@" &
run=$!

# torchrun does not know USR1, but its processes do: they save a state and stop.
stop() {
    pkill -USR1 -P "$run"
    wait "$run"
}
trap 'stop; scontrol requeue "$SLURM_JOB_ID"; exit' USR1   # the time is over: the job goes on from there later
trap 'stop; exit' TERM                                     # pre-empted: Slurm queues it again by itself
wait "$run"
