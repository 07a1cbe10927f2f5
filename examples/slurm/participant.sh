#!/usr/bin/env bash
#SBATCH --job-name=tmri-participant
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
# One task of the array that submit.sh submits: the participant level for one participant.
#
# The exit code is the app's (README), so that `sacct` tells bad data (65) from a missing file (66).
# 75, stopped in time or killed for memory, goes back into the queue.
set -uo pipefail
. "$HERE/settings.sh"

begin=$(((SLURM_ARRAY_TASK_ID - 1) * PER_TASK + 1))
mapfile -t people < <(sed -n "$begin,$((begin + PER_TASK - 1))p" "$PEOPLE")
echo "$(date) $(hostname): ${people[*]}"

# Nipype knows its steps again by their path, so the folder is called the same after a restart,
# which may be on another node. What was reached is kept under OUT in between.
job=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}
work=$SCRATCH/transfermri-$(id -u)-$job
kept=$OUT/.work/slurm/$job.tar
mkdir -p "$work"
trap 'rm -rf "$work"' EXIT
if [ -f "$kept" ]; then tar -xf "$kept" -C "$work"; fi

# shellcheck disable=SC2086  # the options are words
heeding app "$BIDS" "$OUT" participant --participant-label "${people[@]}" -w "$work" \
    $PARTICIPANT_OPTIONS
code=$?
if [ "$code" -eq 75 ]; then
    mkdir -p "${kept%/*}"
    tar -cf "$kept.part" -C "$work" . && mv "$kept.part" "$kept"
    rm -rf "$work" # SLURM ends this script when it puts it back
    requeue
else
    rm -f "$kept"
fi
exit "$code"
