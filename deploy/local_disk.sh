#!/usr/bin/env bash
# Makes /mnt/ray, for Ray's temporary files and spilled objects: on the local NVMe disk where there is one, else on
# the root disk. What it held is gone after a restart, and nobody misses it.
set -euo pipefail

target=/mnt/ray

sudo mkdir -p "$target"
if mountpoint -q "$target"; then
    :
elif mountpoint -q /opt/dlami/nvme; then
    # AWS's deep learning images have mounted the disks already.
    sudo mkdir -p /opt/dlami/nvme/ray
    sudo mount --bind /opt/dlami/nvme/ray "$target"
else
    # As EC2 and Compute Engine name their local disks; network disks have other names.
    disk=$(lsblk --nodeps --noheadings --paths --output NAME,MODEL |
        awk '/EC2 NVMe Instance Storage|nvme_card[0-9]* *$/ { print $1; exit }')
    if [ -n "$disk" ]; then
        sudo mkfs.ext4 -q -F "$disk"
        sudo mount -o noatime "$disk" "$target"
    else
        echo "no local NVMe disk: $target is on the root disk" >&2
    fi
fi
sudo chown "$(id -u):$(id -g)" "$target"
mkdir -p "$target/tmp" "$target/spill"
