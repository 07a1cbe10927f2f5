#!/usr/bin/env bash
# Run a command in a root file system the way a container engine does it, under hard conditions.
#   unshare --mount --pid --fork [--net] enter.sh ROOT {ro|rw} UID:GID [SOURCE:TARGET[:ro] …] -- COMMAND…
# Mounts are private to the calling namespaces and vanish with them. TARGETs lie under /mnt; /tmp and
# /dev/shm are as small and strict as Docker makes them. The environment is passed on as it is.
set -euo pipefail

root=$1 mode=$2 user=$3
shift 3

mount --make-rprivate /
mount --bind "$root" "$root"
if [ "$mode" = ro ]; then mount -o remount,bind,ro "$root"; fi
mount -t proc proc "$root/proc"
mount -t tmpfs -o nosuid,nodev,noexec,mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/mnt"
while [ "$1" != -- ]; do
    IFS=: read -r source target access <<<"$1"
    mkdir -p "$root$target"
    mount --bind "$source" "$root$target"
    if [ -n "$access" ]; then mount -o "remount,bind,$access" "$root$target"; fi
    shift
done
shift
mount -o remount,ro "$root/mnt"

mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/shm"
ln -s /proc/self/fd "$root/dev/fd"
mount -t tmpfs -o nosuid,nodev,noexec,mode=1777,size=64m tmpfs "$root/dev/shm"
mount -o remount,ro "$root/dev"

exec chroot --userspec="$user" --groups= "$root" "$@"
