# What a site changes, by editing this file or by variables of the environment. Read by the other
# scripts; paths are absolute, and on a file system that every node sees unless said otherwise.

BIDS=${BIDS:?the dataset}
OUT=${OUT:?where the derivatives go}
# The app: a program (transfermri), or an Apptainer image (/images/transfermri-0.1.0.sif).
TRANSFERMRI=${TRANSFERMRI:-transfermri}
# Fast disk of a node, for the work folder of its tasks.
SCRATCH=${SCRATCH:-${SLURM_TMPDIR:-${TMPDIR:-/tmp}}}
# More options of sbatch for every job: --account, --partition, --qos. Words without spaces.
SBATCH_OPTIONS=${SBATCH_OPTIONS:-}
# How `group` asks for a GPU: --gpus-per-task=1, on older clusters --gres=gpu:1, empty for none.
GPU_OPTIONS=${GPU_OPTIONS---gpus-per-task=1}
# More options of the app. Several GPUs: see group.sh.
PARTICIPANT_OPTIONS=${PARTICIPANT_OPTIONS:---device cpu}
GROUP_OPTIONS=${GROUP_OPTIONS:-}
# A job that says 75 (stopped in time, or out of memory) starts again this often.
RESTARTS=${RESTARTS:-3}

# Run the app as it is installed, or in its image. It learns from SLURM's variables how much memory
# and how many processors it may use, so they go into the container, which is else kept apart.
app() {
    case $TRANSFERMRI in
    *.sif)
        local told=TMPDIR=/tmp name
        for name in SLURM_MEM_PER_NODE SLURM_MEM_PER_CPU SLURM_CPUS_ON_NODE SLURM_CPUS_PER_TASK; do
            [ -z "${!name:-}" ] || told+=,$name=${!name}
        done
        exec apptainer run --containall --writable-tmpfs ${GPU_OPTIONS:+--nv} --env "$told" \
            --bind "$BIDS:$BIDS:ro" --bind "$OUT" --bind "$SCRATCH" "$TRANSFERMRI" "$@"
        ;;
    *) exec "$TRANSFERMRI" "$@" ;;
    esac
}

# Run a command so that SIGTERM, which SLURM sends two minutes before the end of the time, reaches
# it while this shell waits. Returns its exit code.
heeding() {
    "$@" &
    local pid=$! code told=
    trap 'told=1; kill -TERM "$pid"' TERM
    wait "$pid"
    code=$?
    # The signal ends a wait, and not the command: wait again for the code of that.
    while [ -n "$told" ] && [ "$code" -gt 128 ]; do
        told=
        wait "$pid"
        code=$?
    done
    trap - TERM
    return "$code"
}

# Put this job back into the queue, if it has not started too often.
requeue() {
    if [ "${SLURM_RESTART_COUNT:-0}" -ge "$RESTARTS" ]; then
        echo "Started $((RESTARTS + 1)) times; not again. Give it more time or memory." >&2
        return
    fi
    scontrol requeue "$SLURM_JOB_ID"
}
