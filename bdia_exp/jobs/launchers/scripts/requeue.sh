# USR1 comes before the time limit or a pre-emption. If the work was stopped by it, it goes on later.
if [[ $signal = USR1 && $status -gt 128 ]]; then
    # An element of an array is named as ARRAY_TASK: a plain number may be the whole array.
    job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}}
    scontrol requeue "${job:-$SLURM_JOB_ID}"
fi
