#!/usr/bin/env bash
# Submit a whole round: participant for everybody → group → participant for everybody.
#
#   BIDS=/data/bids OUT=/data/out TRANSFERMRI=/images/transfermri.sif ./submit.sh
#
# One array task a participant (of a thousand and more, several a task). settings.sh says what else
# can be set. Prints the three job numbers.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export HERE
. "$HERE/settings.sh"
export BIDS OUT TRANSFERMRI GPU_OPTIONS PARTICIPANT_OPTIONS GROUP_OPTIONS RESTARTS
[ -d "$BIDS" ] || { echo "BIDS=$BIDS is not a folder." >&2; exit 66; }
mkdir -p "$OUT/logs/slurm"

# Who is in the dataset: the column participant_id, or the folders where there is no table.
everybody() {
    if [ -f "$BIDS/participants.tsv" ]; then
        awk -F '\t' '{ sub(/\r$/, "") }
            NR == 1 { for (i = 1; i <= NF; i++) if ($i == "participant_id") column = i; next }
            column && $column != "" { print $column }' "$BIDS/participants.tsv"
    else
        (cd "$BIDS" && find . -mindepth 1 -maxdepth 1 -name 'sub-*' -type d -printf '%f\n' | sort)
    fi
}

export PEOPLE=$OUT/logs/slurm/participants.txt
everybody | while read -r person; do
    if [ -d "$BIDS/$person" ]; then echo "$person"; else echo "$person has no folder." >&2; fi
done > "$PEOPLE"
count=$(wc -l < "$PEOPLE")
[ "$count" -gt 0 ] || { echo "Nobody in $BIDS." >&2; exit 18; }
# SLURM's own limit of an array is 1000 unless the site has raised it.
export PER_TASK=${PER_TASK:-$(((count + 999) / 1000))}
tasks=$(((count + PER_TASK - 1) / PER_TASK))

submit() {
    # shellcheck disable=SC2086  # the options are words
    sbatch --parsable $SBATCH_OPTIONS "$@" | cut -d ';' -f 1
}
LOGS=$OUT/logs/slurm
first=$(submit --array="1-$tasks" --output="$LOGS/%x-%A_%a.log" "$HERE/participant.sh")
# afterany: one participant who failed must not keep `group` from the others. If nobody has labels,
# `group` says so itself (66). Applying makes sense only if a model was made: afterok.
# shellcheck disable=SC2086
group=$(submit --dependency="afterany:$first" $GPU_OPTIONS --output="$LOGS/%x-%j.log" \
    "$HERE/group.sh")
second=$(submit --dependency="afterok:$group" --kill-on-invalid-dep=yes --job-name=tmri-apply \
    --array="1-$tasks" --output="$LOGS/%x-%A_%a.log" "$HERE/participant.sh")
printf 'participant %s\ngroup %s\napply %s\n' "$first" "$group" "$second"
