# A SLURM of one node, this machine, with daemons started by hand. Read by run.sh.

# start_slurm FOLDER: configuration, keys, spools, logs and sockets go there; exports SLURM_CONF.
start_slurm() {
    local folder=$1 name memory munge
    name=$(hostname -s)
    memory=$(awk '/^MemTotal/ { print int($2 / 1024) }' /proc/meminfo)
    if ! command -v slurmctld slurmd munged sbatch > /dev/null; then
        # Runlevel 1: the packages' own services are not started.
        apt-get update -q && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install --yes -q \
            --no-install-recommends slurmctld slurmd slurm-client munge > /dev/null || return 1
    fi
    munge=$folder/munge
    mkdir -p "$folder"/{state,spool,log} "$munge"
    head -c 1024 /dev/urandom > "$munge/key"
    chmod 400 "$munge/key"
    DAEMONS=()
    munged --foreground --key-file="$munge/key" --socket="$munge/socket" \
        --pid-file="$munge/pid" --log-file="$munge/log" --seed-file="$munge/seed" \
        > "$folder/log/munged" 2>&1 &
    DAEMONS+=($!)
    wait_until 10 test -S "$munge/socket" || { cat "$folder/log/munged"; return 1; }
    cat > "$folder/slurm.conf" <<CONF
ClusterName=here
SlurmctldHost=$name(127.0.0.1)
SlurmctldPort=26817
SlurmdPort=26818
AuthType=auth/munge
AuthInfo=socket=$munge/socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld
SlurmdLogFile=$folder/log/slurmd
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0
ReturnToService=2
# The jobs' states are asked for at the end.
MinJobAge=86400
NodeName=$name NodeAddr=127.0.0.1 CPUs=$(nproc --all) RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=$name Default=YES MaxTime=INFINITE State=UP
CONF
    export SLURM_CONF=$folder/slurm.conf
    slurmctld -D -f "$SLURM_CONF" > "$folder/log/slurmctld.out" 2>&1 &
    DAEMONS+=($!)
    slurmd -D -f "$SLURM_CONF" > "$folder/log/slurmd.out" 2>&1 &
    DAEMONS+=($!)
    idle() { [ "$(sinfo --noheader --format=%T 2> /dev/null)" = idle ]; }
    wait_until 60 idle || { tail -n 20 "$folder"/log/*; return 1; }
    echo "SLURM $(sinfo --version | cut -d ' ' -f 2), one node, $(nproc --all) processors"
}

# End the daemons that start_slurm started, and whatever jobs are left.
stop_slurm() {
    [ -n "${DAEMONS:-}" ] || return 0
    scancel --quiet --user=root 2> /dev/null
    idle() { [ -z "$(squeue --noheader 2> /dev/null)" ]; }
    wait_until 40 idle
    local at
    for ((at = ${#DAEMONS[@]} - 1; at >= 0; at--)); do
        kill "${DAEMONS[at]}" 2> /dev/null
        wait "${DAEMONS[at]}" 2> /dev/null
    done
}

# wait_until SECONDS COMMAND…: until it succeeds.
wait_until() {
    local until=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$until" ] || return 1
        sleep 0.5
    done
}

# wait_for_jobs SECONDS: until the queue is empty.
wait_for_jobs() {
    none() { [ -z "$(squeue --noheader 2> /dev/null)" ]; }
    wait_until "$1" none || { squeue; return 1; }
}

# field JOB NAME: what scontrol says of a job.
field() {
    scontrol show job "$1" --oneliner 2> /dev/null | head -n 1 | tr ' ' '\n' | sed -n "s/^$2=//p"
}
