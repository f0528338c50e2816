# The nodes of the job meet at the first one.
hosts=()
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
meet="${hosts[0]}:$((20000 + SLURM_JOB_ID % 20000))"
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # srun does not take it from sbatch
