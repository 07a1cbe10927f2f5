#!/usr/bin/env bash
# From a bare Debian machine to a finished simulated round inside the image, without a Docker daemon.
#
#   tests/container/run.sh [FOLDER]       as root; FOLDER (default build/container) takes about 25 GB
#
# Builds debian:bookworm-slim with debootstrap and the CPU variant of the Dockerfile with buildah, and
# runs the image under the conditions that clusters and hospitals impose. Prints PASS or FAIL for each
# check and ends non-zero on any FAIL. What FOLDER already holds (base image, layers) is used again.
#
# This machine's pip configuration (mirror, certificate, constraints, folders of wheels) is handed to
# the build as read-only volumes, its Debian mirror to the base image. To override:
#   TORCH_INDEX=URL   where the CPU build of PyTorch comes from
#   DRIVER=overlay    storage driver; vfs works everywhere, overlay takes a third of the space
#   LIMIT=BYTES       what the image may take at most (2.5 GB)
#   ONLY=PATTERN      no build: the checks whose names match, on the image that FOLDER holds
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
mkdir -p "${1:-$repository/build/container}"
work=$(cd "${1:-$repository/build/container}" && pwd)
base=debian:bookworm-slim
image=localhost/transfermri:cpu
limit=${LIMIT:-2500000000}
export BUILDAH_ISOLATION=chroot

store() { buildah --root "$work/store" --runroot "$work/run" --storage-driver "${DRIVER:-vfs}" "$@"; }
has() { store inspect --type image "$1" >/dev/null 2>&1; }
say() { printf '%s %s\n' "$(date +%T)" "$*"; }

# ---------------------------------------------------------------------------------------- building

install_tools() {
    command -v buildah debootstrap unshare python3 git >/dev/null && return
    say 'install buildah and debootstrap'
    apt-get update --quiet
    apt-get install --quiet --yes --no-install-recommends \
        buildah debootstrap debian-archive-keyring python3 git util-linux
}

# The mirror of a suite that this machine's apt uses; nothing where it uses none.
mirror_of() {
    # shellcheck disable=SC2016  # these are apt's variables
    apt-get indextargets --format '$(CODENAME) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
        awk -v suite="$1" '$1 == suite && $2 == "main" { print $3; exit }'
}

# What the published image of that name is: minbase, newest updates, no manuals or translations.
make_base() {
    has "$base" && return
    say "make $base"
    local root=$work/base suite uri container
    rm -rf "$root"
    uri=$(mirror_of bookworm)
    # shellcheck disable=SC2086  # without a mirror, debootstrap knows one
    debootstrap --variant=minbase bookworm "$root" $uri
    for suite in bookworm-updates bookworm-security; do
        uri=$(mirror_of "$suite")
        if [ -n "$uri" ]; then echo "deb $uri $suite main"; fi
    done >>"$root/etc/apt/sources.list"
    (cd "$root/usr/share" && rm -rf groff info linda lintian locale man)
    find "$root/usr/share/doc" ! -type d ! -name copyright -delete
    printf 'path-exclude /usr/share/%s/*\n' doc groff info linda lintian locale man \
        >"$root/etc/dpkg/dpkg.cfg.d/slim"
    echo 'path-include /usr/share/doc/*/copyright' >>"$root/etc/dpkg/dpkg.cfg.d/slim"
    echo 'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/*.bin"; };' \
        >"$root/etc/apt/apt.conf.d/clean"
    rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/log/*.log
    container=$(store from scratch)
    store add --quiet "$container" "$root" /
    store config --cmd bash "$container"
    store commit --quiet --rm "$container" "$base"
    rm -rf "$root"
}

build_image() {
    local revision volume volumes=() options=(--layers --pull-never --build-arg VARIANT=cpu)
    revision=$(git -C "$repository" describe --always --dirty --abbrev=40 --exclude '*' || echo unknown)
    options+=(--build-arg "REVISION=$revision")
    rm -rf "$work/pip"
    for volume in $(umask 077 && python3 "$here/host_pip.py" "$work/pip"); do
        volumes+=(--volume "$volume")
        if compgen -G "${volume%%:*}/torch-*+cpu-*.whl" >/dev/null; then
            volume=${volume#*:}
            : "${TORCH_INDEX:=file://${volume%:ro}}"  # such a folder serves as the index, too
        fi
    done
    if [ -n "${TORCH_INDEX:-}" ]; then options+=(--build-arg "TORCH_INDEX=$TORCH_INDEX"); fi
    say 'build the stage that installs, with the volumes'
    store build "${options[@]}" "${volumes[@]}" --target builder --tag "$image-builder" "$repository"
    # A volume leaves an empty folder behind where it was. The last stage installs nothing from pip,
    # so it does without; the stage before it is taken from the layers just made.
    say 'build the image'
    store build "${options[@]}" --tag "$image" "$repository"
}

# ---------------------------------------------------------------------------------------- checking

failures=0
# check WHAT COMMAND…: one line. What the command said is in FOLDER/logs; its "note: …" is shown.
check() {
    local what=$1 started=$SECONDS log=$work/logs/${1//[^a-zA-Z0-9]/-}.log status=0
    [[ $what =~ ${ONLY:-} ]] || return 0
    shift
    # In a process of its own with errexit, which bash ignores inside an "if" or before "||".
    set +e
    (set -e; "$@") >"$log" 2>&1
    status=$?
    set -e
    if [ "$status" -eq 0 ]; then
        printf 'PASS %s%s (%d s)\n' "$what" "$(sed -n 's/^note: \(.*\)/: \1/p' "$log")" $((SECONDS - started))
    else
        failures=$((failures + 1))
        printf 'FAIL %s, exit code %d (%d s). The end of %s:\n' "$what" "$status" $((SECONDS - started)) "$log"
        tail -n 15 "$log" | sed 's/^/    /'
    fi
}
note() { echo "note: $*"; }
equal() { test "$1" = "$2" || { echo "found $1, expected $2"; return 1; }; }
of_image() { store inspect --type image --format "{{$1}}" "$image"; }

# inside CONDITIONS [SOURCE:TARGET[:ro] …] -- COMMAND…: run it in the image, with its environment.
# "plain" is buildah's own run, as root. Else any of read-only, nobody (a user id in no /etc/passwd),
# no-network (not even a loopback), no-home (HOME is there and closed to this user).
inside() {
    local conditions=$1 mode=rw user=0:0 condition volumes=()
    local spaces=(--mount --ipc --pid --fork --kill-child) variables=("${environment[@]}")
    shift
    if [ "$conditions" = plain ]; then
        while [ "$1" != -- ]; do volumes+=(--volume "$1"); shift; done
        store run "${volumes[@]}" -- "$container" "${@:2}"
        return
    fi
    for condition in $conditions; do
        case $condition in
            read-only) mode=ro ;;
            nobody) user=12345:12345 ;;
            no-network) spaces+=(--net) ;;
            no-home) variables+=(HOME=/root) user=12345:12345 ;;
            *) echo "unknown condition $condition"; return 64 ;;
        esac
    done
    env --ignore-environment "${variables[@]}" \
        unshare "${spaces[@]}" "$here/enter.sh" "$root" "$mode" "$user" "$@"
}

version() { equal "$(inside "$1" -- "${entry[@]}" --version)" "TransferMRI $release"; }

version_file() { equal "$(cat "$root/version")" "$release"; }

labels() {
    local name
    for name in title description version revision licenses source vendor; do
        echo "$name: $(of_image "index .OCIv1.Config.Labels \"org.opencontainers.image.$name\"")"
    done | tee /dev/stderr | awk '!$2 { exit 1 }'
    equal "$(of_image 'index .OCIv1.Config.Labels "org.opencontainers.image.version"')" "$release"
}

# What a download unpacks to, as an engine counts it; du without block sizes.
size() {
    local bytes
    bytes=$(du --summarize --apparent-size --block-size=1 --one-file-system "$root" | cut -f 1)
    note "$((bytes / 1000000)) MB of $((limit / 1000000))"
    test "$bytes" -le "$limit"
}

# No mount point or file of the build, no package cache, no compiler, nothing of root's in /tmp.
no_leftovers() {
    local left
    left=$(find "$root"/run/pip* "$root"/etc/pip.conf "$root"/root/.cache "$root"/usr/bin/*gcc* 2>/dev/null || true)
    # apt keeps an empty lock in its cache, in the published base image too.
    left+=$(find "$root/tmp" "$root/var/lib/apt/lists" "$root/var/cache/apt/archives" -type f -size +0)
    equal "$left" ''
}

# A folder that anybody may write to, as cluster scratch is.
scratch() { rm -rf "$1" && install --directory --mode 1777 "$1"; }

# simulate → participant → group → participant; complete, and with the model that was fine-tuned.
simulated_round() {
    local conditions=$1 folder=$work/${1// /-} name
    in_force "$conditions"
    for name in data out work; do scratch "$folder/$name"; done
    inside "$conditions" "$folder/data:/mnt/data" -- /opt/venv/bin/transfermri-simulate \
        /mnt/data/bids --participants 3 --voxel-size 6 --directions 8 --seed 1
    app "$conditions" "$folder" participant --nprocs 2
    app "$conditions" "$folder" group --steps 5
    app "$conditions" "$folder" participant --nprocs 2
    (
        cd "$folder/out"
        equal "$(echo sub-*.html)" 'sub-01.html sub-02.html sub-03.html'
        for name in sub-0{1,2,3}; do
            grep --quiet '"ModelName": "transfermri-orientation"' \
                "$name"/dwi/*_model-unet_param-direction_dwimap.json
        done
    )
}

# app CONDITIONS FOLDER LEVEL …: FOLDER/data is read-only, FOLDER/out and FOLDER/work are not.
app() {
    local conditions=$1 folder=$2
    shift 2
    inside "$conditions" "$folder/data:/mnt/data:ro" "$folder/out:/mnt/out" "$folder/work:/mnt/work" \
        -- "${entry[@]}" /mnt/data/bids /mnt/out "$@" --work-dir /mnt/work
}

# One participant without a T1w image, from nothing: short, and past every library.
one_participant() {
    local folder=$work/one name
    for name in data out work; do scratch "$folder/$name"; done
    cp --recursive "$work/plain/data/bids" "$folder/data"  # the first round's
    rm -rf "$folder/data/bids/sub-01/anat"
    in_force "$1"
    app "$1" "$folder" participant --participant-label 01
}

# Whether each condition really holds, seen from inside.
in_force() {
    local condition
    for condition in $1; do
        case $condition in
            read-only) inside "$1" -- /bin/sh -c '! touch /opt/here' ;;
            nobody) inside "$1" -- /bin/sh -c 'test "$(id -u)" -eq 12345 && ! id -un' ;;
            no-network) inside "$1" -- /bin/sh -c '! grep -q : /proc/net/route && test "$(grep -c : /proc/net/dev)" -eq 1' ;;
            no-home) inside "$1" -- /bin/sh -c 'test -d "$HOME" && ! touch "$HOME/here"' ;;
        esac
    done
}

# Every file of the image with its size and time, and every folder; mounts do not count.
listing() {
    (cd "$root" && find . \( -path ./proc -o -path ./sys -o -path ./dev -o -path ./mnt -o -path ./tmp \) \
        -prune -o -type d -printf '%P d %m %U\n' -o -printf '%P %y %s %T@ %m %U\n' | sort)
}

# As root on a root file system that can be written to: nothing there has changed afterwards.
round_leaves_image_alone() {
    inside plain "$work/logs:/mnt/data" "$work/logs:/mnt/out" "$work/logs:/mnt/work" -- /bin/true
    listing >"$work/logs/before"
    simulated_round plain
    listing >"$work/logs/after"
    diff "$work/logs/before" "$work/logs/after"
}

check_image() {
    release=$(sed -n "s/^__version__ = '\(.*\)'/\1/p" "$repository/bidsapp/__init__.py")
    container=$(store from --pull-never "$image")
    trap 'store rm "$container" >/dev/null' EXIT
    root=$(store mount "$container")
    mapfile -t environment < <(of_image 'range .OCIv1.Config.Env}}{{println .}}{{end' | sed '/^$/d')
    mapfile -t entry < <(of_image 'range .OCIv1.Config.Entrypoint}}{{println .}}{{end' | sed '/^$/d')

    check '--version' version plain
    check '/version' version_file
    check 'labels' labels
    check 'size' size
    check 'nothing left of the build' no_leftovers
    check 'simulated round as root, image unchanged' round_leaves_image_alone
    check 'read-only root' one_participant 'read-only'
    check 'unknown user id' one_participant 'nobody'
    check 'no network' one_participant 'no-network'
    check 'HOME unwritable' one_participant 'no-home'
    check 'simulated round under all of these at once' \
        simulated_round 'read-only nobody no-network no-home'
}

main() {
    test "$(id -u)" -eq 0 || { echo 'run.sh mounts file systems, so it must run as root' >&2; exit 64; }
    install_tools
    if [ -z "${ONLY:-}" ]; then
        make_base
        build_image
        rm -rf "$work/logs"
    fi
    mkdir -p "$work/logs"
    check_image
    say "$failures checks failed"
    test "$failures" -eq 0
}

main; exit  # read whole before it begins, so that an edit meanwhile does no harm
