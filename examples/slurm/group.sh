#!/usr/bin/env bash
#SBATCH --job-name=tmri-group
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
# The group level, after all participants.
#
# One fit uses one GPU. With several (sbatch --ntasks=4, each with its own by GPU_OPTIONS) the tasks
# to learn are dealt out among them. Each then makes the split by itself, from the participants that
# have labels of its tasks: add --split-file to GROUP_OPTIONS where not everybody has all labels.
# The state of a fit is kept under OUT/.work, so that a restart goes on.
set -uo pipefail
. "$HERE/settings.sh"

one() {
    local chosen=()
    if [ "$SLURM_NTASKS" -gt 1 ]; then
        local all=(orientation microstructure tissue crossings kurtosis) i
        chosen=(--tasks)
        for ((i = SLURM_PROCID; i < ${#all[@]}; i += SLURM_NTASKS)); do chosen+=("${all[i]}"); done
        [ "${#chosen[@]}" -gt 1 ] || { echo "No task is left for process $SLURM_PROCID."; exit 0; }
    fi
    # shellcheck disable=SC2086  # the options are words
    app "$BIDS" "$OUT" group "${chosen[@]}" $GROUP_OPTIONS
}

# srun passes the signal on to the processes of the step.
if [ -n "${SLURM_PROCID:-}" ] && [ "${1:-}" = one ]; then one; fi
heeding srun --cpus-per-task="$SLURM_CPUS_PER_TASK" bash "$HERE/group.sh" one
code=$?
[ "$code" -ne 75 ] || requeue
exit "$code"
