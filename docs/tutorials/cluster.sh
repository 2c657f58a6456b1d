#!/bin/bash
#SBATCH --job-name=digits
#SBATCH --array=0-1             # a job for each seed
#SBATCH --ntasks-per-node=2     # processes of a run: as many as `devices` of the Trainer
#SBATCH --cpus-per-task=1
#SBATCH --time=01:00:00
#SBATCH --signal=TERM@60        # SIGTERM to the processes a minute before the time is up
#SBATCH --open-mode=append
#SBATCH --requeue

srun python docs/tutorials/cluster.py --seed "$SLURM_ARRAY_TASK_ID"
status=$?

case $status in
    0) ;;                                      # the run has ended
    75) status=0 ;;                            # people are asked: no failure
    143) scontrol requeue "$SLURM_JOB_ID" ;;   # ended by SIGTERM: the same job again
esac
exit $status
