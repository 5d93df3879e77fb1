#!/bin/bash
#SBATCH --job-name=distill
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300   # five minutes before the end, this script is told
#SBATCH --requeue
#SBATCH --open-mode=append

distill launch --processes "${SLURM_GPUS_ON_NODE:-8}" --resume auto "$@" &
run=$!

stop() {   # all processes save a state
    kill -USR1 "$run"
    wait "$run"
}
trap 'stop; scontrol requeue "$SLURM_JOB_ID"; exit' USR1   # the time is over: the job goes on from there later
trap 'stop; exit' TERM                                     # pre-empted: Slurm queues it again by itself
wait "$run"
