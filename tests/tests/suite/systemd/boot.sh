# Begins a machine in a machine, whose first process is a real systemd: called in mount, PID, UTS, IPC
# and cgroup namespaces that are new, and in a node's network namespace.
#
#   boot.sh ROOT BINARIES UNITS ETC
#
# ROOT is an empty folder, BINARIES where the product's are, UNITS what systemd shall know, ETC what is
# to be in /etc. All that the machine can write is memory of its own and its network's settings; of the
# machine around it it has what is in /usr/lib, read-only, and no unit, generator or list of files to
# make, remove or set is among that.
set -eu
root=$1; binaries=$2; units=$3; etc=$4
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$root"
cd "$root"
mkdir -p usr/bin usr/lib usr/lib64 boot etc run tmp var/lib proc sys dev root home old
for folder in bin lib lib64; do ln -s "usr/$folder" "$folder"; done
for folder in lib lib64; do
    if [ -e "/usr/$folder" ]; then
        mount --bind "/usr/$folder" "usr/$folder"
        mount -o remount,bind,ro "usr/$folder"
    fi
done
programs="$binaries/mizzen-agent $binaries/mizzen $binaries/mizzen-cni"
for program in $programs "$(command -v systemctl)" "$(command -v umount)"; do
    file="usr/bin/${program##*/}"
    touch "$file"
    mount --bind "$program" "$file"
    mount -o remount,bind,ro "$file"
done
for folder in systemd/system systemd/system-generators tmpfiles.d sysctl.d modules-load.d; do
    if [ -e "usr/lib/$folder" ]; then mount -t tmpfs tmpfs "usr/lib/$folder"; fi
done
cp -r "$units/." usr/lib/systemd/system/
cp -r "$etc/." etc/
: > etc/machine-id
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount --bind /proc/sys/net proc/sys/net
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t bpf bpf sys/fs/bpf
mount -t tmpfs -o mode=755 tmpfs dev
for device in null zero full random urandom; do
    touch "dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
hostname "$(cat etc/hostname)"
pivot_root . old
umount -l old
export container=mizzen PATH=/usr/bin
exec /usr/lib/systemd/systemd --system --unit=basic.target --log-target=console --show-status=no
