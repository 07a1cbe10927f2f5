#!/usr/bin/env bash
# examples/slurm on a real SLURM of one node, made here and taken down again.
#
#   PYTHON=.venv/bin/python tests/cluster/run.sh
#
# From a bare Debian machine, as root: slurm-wlm and munge are installed where they are missing;
# everything else lies in a temporary folder (KEEP=1 leaves it; HOLD=FOLDER goes on in one that was
# left, with its dataset and its plain run). Four people are simulated and one is broken. Prints
# PASS or FAIL a check; the exit code is the number of failures. TASKS names the tasks that are
# run, STEPS the length of `group`.
#
# Not shown by this: a partition with GPUs (`group` is submitted without one), a container, several
# nodes, a shared file system, cgroups.
set -uo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
PYTHON=$(command -v "${PYTHON:-python3}") || { echo "no ${PYTHON:-python3}" >&2; exit 64; }
[ "$(id -u)" -eq 0 ] || { echo 'SLURM starts jobs for others: run this as root.' >&2; exit 64; }
. "$ROOT/tests/cluster/slurm.sh"

HOLD=${HOLD:-$(mktemp -d /tmp/tmri-cluster.XXXXXX)}
chmod 755 "$HOLD"
rm -rf "$HOLD"/{bin,slurm,out,scratch,stopped,stopped.log,plugin}
TASKS=${TASKS:-orientation tissue}
failures=0
check() {  # check WORDS COMMAND…
    local words=$1
    shift
    if "$@"; then echo "PASS $words"; else echo "FAIL $words"; failures=$((failures + 1)); fi
}
finish() {
    stop_slurm
    if [ -n "${KEEP:-}" ]; then echo "kept: $HOLD"; else rm -rf "$HOLD"; fi
}
trap finish EXIT
trap 'exit 1' INT TERM

# The code of this checkout, as a program.
mkdir "$HOLD/bin"
for name in transfermri:cli transfermri-simulate:simulated; do
    start="import sys; from bidsapp.${name#*:} import main; sys.exit(main())"
    printf '#!/bin/sh\nexec %q -c "%s" "$@"\n' "$PYTHON" "$start" > "$HOLD/bin/${name%:*}"
    chmod +x "$HOLD/bin/${name%:*}"
done
export PATH=$HOLD/bin:$PATH PYTHONPATH=$ROOT OMP_NUM_THREADS=1
start_slurm "$HOLD/slurm" || exit 1

BIDS=$HOLD/bids
if [ ! -f "$BIDS/participants.tsv" ]; then
    rm -rf "$BIDS"
    transfermri-simulate "$BIDS" --participants 4 --seed 3 --voxel-size 4.5 --directions 30 \
        > /dev/null
    scan=$BIDS/sub-02/dwi/sub-02_dwi.nii.gz
    truncate --size=$(($(stat -c %s "$scan") / 2)) "$scan"
fi
STEPS=${STEPS:-4}

echo '== a plain run, to compare with'
PLAIN=$HOLD/plain
plain() {
    # shellcheck disable=SC2086  # the tasks are words
    transfermri "$BIDS" "$PLAIN" "$@" --device cpu --tasks $TASKS > "$HOLD/plain-$1.log" 2>&1
}
plain participant --nprocs 2
check 'plain: one broken participant, so the code is 1' [ $? -eq 1 ]
# Sums depend on the number of threads in the last bit, so the number is that of the job.
plain group --steps "$STEPS" --nprocs 1
check 'plain: group' [ $? -eq 0 ]
plain participant --nprocs 2
check 'plain: participant again, code 1' [ $? -eq 1 ]

echo '== the example'
OUT=$HOLD/out
export BIDS OUT GPU_OPTIONS='' TRANSFERMRI=transfermri SCRATCH=$HOLD/scratch
export PARTICIPANT_OPTIONS="--device cpu --tasks $TASKS"
export GROUP_OPTIONS="--steps $STEPS --device cpu --tasks $TASKS"
# This machine is smaller than the example's nodes.
export SBATCH_OPTIONS='--cpus-per-task=1 --mem=5G --time=60'
mkdir -p "$SCRATCH"
began=$SECONDS
SBATCH_OPTIONS="$SBATCH_OPTIONS" "$ROOT/examples/slurm/submit.sh" > "$HOLD/jobs" || exit 1
cat "$HOLD/jobs"
read -r first group second < <(awk '{ printf "%s ", $2 }' "$HOLD/jobs"; echo)
wait_for_jobs "$((${MINUTES:-50} * 60))"
echo "the chain took $((SECONDS - began)) s"
for job in "$first"_1 "$first"_2 "$first"_3 "$first"_4 "$group" "$second"_1 "$second"_2; do
    echo "  $job $(field "$job" JobState) $(field "$job" ExitCode)"
done

state() { [ "$(field "$1" JobState) $(field "$1" ExitCode)" = "$2" ]; }
for task in 1 3 4; do
    check "array: task $task is completed" state "${first}_$task" 'COMPLETED 0:0'
done
check 'array: the broken participant fails its own task, with 65' state "${first}_2" 'FAILED 65:0'
check 'its log names participant and reason' \
    grep -q 'FAILED sub-02.*Copy' "$OUT/logs/slurm/tmri-participant-${first}_2.log"
check 'group is completed, one failed participant or not' state "$group" 'COMPLETED 0:0'
after() { [[ $(field "$1" StartTime) > $(field "$2" EndTime) ||
    $(field "$1" StartTime) == "$(field "$2" EndTime)" ]]; }
for task in 1 2 3 4; do
    check "group began after task $task had ended" after "$group" "${first}_$task"
done
for task in 1 3 4; do
    check "again: task $task is completed" state "${second}_$task" 'COMPLETED 0:0'
    check "again: task $task began after group" after "${second}_$task" "$group"
done
check 'again: the broken participant fails with 65' state "${second}_2" 'FAILED 65:0'
check 'work folders on the local disk are gone' test -z "$(ls -A "$SCRATCH")"
check 'memory and processors are those of the job' \
    grep -q 'steps may take 4.5 GB together (90% of 5.0 GB, SLURM_MEM_PER_NODE)' \
    "$OUT/logs/slurm/tmri-participant-${first}_1.log"

echo '== the same as the plain run'
"$PYTHON" "$ROOT/tests/cluster/same.py" "$PLAIN" "$OUT"
check 'every image has the same voxels, every table and all weights the same bytes' [ $? -eq 0 ]

echo '== stopped before the end of its time, and started again'
printf 'sub-01\n' > "$HOLD/one"
OUT=$HOLD/stopped
mkdir -p "$OUT/logs"
job=$(HERE=$ROOT/examples/slurm PEOPLE=$HOLD/one PER_TASK=1 OUT=$OUT \
    PARTICIPANT_OPTIONS='--device cpu --tasks orientation -v' \
    sbatch --parsable --array=1 --cpus-per-task=1 --mem=5G --output="$HOLD/stopped.log" \
    "$ROOT/examples/slurm/participant.sh")
wait_until 900 grep -q 'start .*dwi_preproc_wf.motion' "$HOLD/stopped.log"
scancel --batch --signal=TERM "${job}_1"
wait_until 120 grep -q 'Start the same command again\|goes on from here' "$HOLD/stopped.log"
check 'SIGTERM to the batch shell reaches the app, which says what to do' [ $? -eq 0 ]
restarted() { [ "$(field "${job}_1" Restarts)" = 1 ]; }
wait_until 60 restarted
check 'the job is back in the queue by itself' [ $? -eq 0 ]
# SLURM lets a job rest for two minutes after it was put back.
wait_for_jobs 1800
check 'it is completed at the second start' state "${job}_1" 'COMPLETED 0:0'
starts() { grep -c "start .*dwi_preproc_wf.$1" "$HOLD/stopped.log"; }
check 'it went on: motion was begun twice, denoising before it once' \
    [ "$(starts motion) $(starts denoise)" = '2 1' ]

if [ -z "${WITHOUT_PLUGIN:-}" ]; then
    echo '== the SLURM plugin of Nipype'
    OUT=$HOLD/plugin
    transfermri "$BIDS" "$OUT" participant --participant-label 01 --tasks orientation \
        --device cpu --use-plugin "$ROOT/examples/nipype/slurm.yml" > "$HOLD/plugin.log" 2>&1
    check 'participant through jobs of the plugin' [ $? -eq 0 ]
    "$PYTHON" "$ROOT/tests/cluster/same.py" "$HOLD/stopped" "$OUT"
    check 'the same as a run on the node itself' [ $? -eq 0 ]
fi

echo "$failures failed"
exit "$failures"
