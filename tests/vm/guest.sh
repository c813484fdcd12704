#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The first process of the guest after init.sh: what any system has, then the command that it was booted for. Where
# systemd is the first process, that has seen to the system, and starts this as a service.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
. /run/guest/settings

mkdir -p /dev/pts /dev/shm /run/tmp "/lib/modules"
if [ -z "$SYSTEM" ]; then
    mount -t devpts devpts /dev/pts
    mount -t tmpfs shm /dev/shm
fi
export TMPDIR=/run/tmp

# The host may have headers of this kernel's there.
release=$(uname -r)
rm -rf "/lib/modules/$release"
ln -s "$CHECKOUT/.vm/kernel/lib/modules/$release" "/lib/modules/$release"
echo /run/guest/modprobe >/proc/sys/kernel/modprobe
ip link set lo up

mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=none results "$CHECKOUT/.vm"
cd "$CHECKOUT" || exit
stty -F /dev/ttyS1 -onlcr
: >"$REPORT/up"
sh -c "$COMMAND" </dev/null >/dev/ttyS1 2>&1
echo $? >"$REPORT/exit-code"
echo o >/proc/sysrq-trigger
while :; do :; done
