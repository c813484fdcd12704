#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# The first process of the guest, in the initramfs: makes a root file system that is the host's, read-only, with
# memory above it that takes whatever is written; then goes on with guest.sh of the checkout in there. With SYSTEM it is
# that directory of the host, and systemd goes on: it starts guest.sh when the system is up.
busybox=/bin/busybox
. /settings

give_up() { echo "init: $*"; $busybox poweroff -f; }

$busybox mount -t proc proc /proc
$busybox mount -t sysfs sys /sys
$busybox mount -t devtmpfs dev /dev
for module in /modules/*; do $busybox insmod "$module" || give_up "can't load $module"; done

$busybox mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose host /host ||
    give_up "can't mount the host's files"
$busybox mount -t tmpfs writable /writable
$busybox mkdir /writable/upper /writable/work
$busybox mount -t overlay -o lowerdir="/host$SYSTEM",upperdir=/writable/upper,workdir=/writable/work root /root ||
    give_up "can't put memory above the host's files"

$busybox mount -t tmpfs run /root/run
$busybox mkdir -p /root/run/guest/host /root/run/netns
$busybox cp /bin/busybox /settings /root/run/guest
$busybox ln -s busybox /root/run/guest/modprobe
if [ "$SYSTEM" ]; then
    $busybox mkdir -p "/root$CHECKOUT"
    $busybox mount -o bind "/host$CHECKOUT" "/root$CHECKOUT"
    units=/root/etc/systemd/system
    $busybox sed "s|CHECKOUT|$CHECKOUT|" "/root$CHECKOUT/tests/vm/guest.service" >$units/guest.service
    $busybox mkdir -p $units/multi-user.target.wants
    $busybox ln -s ../guest.service $units/multi-user.target.wants/
    # What would ask questions, or install packages meanwhile.
    for unit in systemd-firstboot.service apt-daily.timer apt-daily-upgrade.timer ssh.service; do
        $busybox ln -sf /dev/null $units/$unit
    done
    $busybox tr -d - </proc/sys/kernel/random/uuid >/root/etc/machine-id
fi
for directory in proc sys dev; do $busybox mount --move "/$directory" "/root/$directory"; done
[ -z "$SYSTEM" ] || exec $busybox switch_root /root /lib/systemd/systemd
exec $busybox switch_root /root /bin/sh "$CHECKOUT/tests/vm/guest.sh"
