# Which task, 1 to @{tasks}: the first argument, or what SLURM, PBS, SGE or LSF sets in an array.
task=${1:-${SLURM_ARRAY_TASK_ID:-${PBS_ARRAY_INDEX:-${SGE_TASK_ID:-${LSB_JOBINDEX:-}}}}}
if [[ -z $task ]]; then
    echo "give the number of the task, 1 to @{tasks}" >&2
    exit 2
fi
