# USR1 comes before the time limit or a pre-emption. If the work was stopped by it, it goes on later.
if [[ $signal = USR1 && $status -gt 128 ]]; then
    if [[ ${SLURM_RESTART_COUNT:-0} -lt @{restarts} ]]; then
        # An element of an array is named as ARRAY_TASK: a plain number may be the whole array.
        job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}}
        scontrol requeue "${job:-$SLURM_JOB_ID}"
    else
        echo "put back into the queue @{restarts} times already, and now no more: if images were added" \
            "each time, submit again; if none were, choose a larger launcher.time= or a smaller shard=" >&2
    fi
fi
