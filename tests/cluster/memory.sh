#!/usr/bin/env bash
# What the app says when the kernel kills a worker for memory: a run in a cgroup that is too small.
#
#   PYTHON=.venv/bin/python tests/cluster/memory.sh
#
# As root, with cgroup version 1, where a group is made inside the present one and removed again, or
# with systemd (systemd-run). Exit code 0 if the app ends by itself with 75 and says why.
set -uo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
PYTHON=$(command -v "${PYTHON:-python3}") || { echo "no ${PYTHON:-python3}" >&2; exit 64; }
LIMIT=${LIMIT:-500M}
export PYTHONPATH=$ROOT OMP_NUM_THREADS=1
HOLD=$(mktemp -d)
group=$(sed -n 's/^[0-9]*:memory:/\/sys\/fs\/cgroup\/memory/p' /proc/self/cgroup)/tmri-$$
trap 'rm -rf "$HOLD"; if [ -d "$group" ]; then rmdir "$group"; fi' EXIT

limited() {
    if mkdir "$group" 2> /dev/null; then
        echo "$LIMIT" > "$group/memory.limit_in_bytes"
        (echo "$BASHPID" > "$group/cgroup.procs" && exec "$@")
    else
        systemd-run --scope --quiet -p MemoryMax="$LIMIT" -p MemorySwapMax=0 "$@"
    fi
}

simulate='import sys; from bidsapp.simulated import main; sys.exit(main())'
"$PYTHON" -c "$simulate" "$HOLD/bids" --participants 1 --voxel-size 4.5 > /dev/null || exit 1
limited timeout 900 "$PYTHON" -m bidsapp "$HOLD/bids" "$HOLD/out" participant --device cpu --nprocs 1 \
    --tasks tissue 2>&1 | tee "$HOLD/said"
code=${PIPESTATUS[0]}
if [ -f "$group/memory.oom_control" ]; then grep oom_kill "$group/memory.oom_control"; fi
[ "$code" -eq 75 ] && grep -q 'FAILED.*was killed (SIGKILL).*of the cgroup' "$HOLD/said" ||
    { echo "FAIL: the code was $code"; exit 1; }
echo 'PASS the kernel killed a worker, and the app ended with 75 and said so'
