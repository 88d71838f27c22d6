#!/bin/sh
# Tests limits by cgroups (version 2) in a virtual machine, because few hosts delegate cgroups to a test.
#
# The machine runs Debian's kernel under QEMU, with the programs of target/debug, busybox and bwrap in an initramfs. It changes
# nothing on the host. Emulation takes seconds and works without KVM.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

command -v apt-get >/dev/null || die "cannot test cgroups: apt-get is missing; use a Debian host, which has packages of QEMU, busybox and a kernel"
install_packages qemu-system-x86 busybox-static cpio bubblewrap util-linux
build=$PWD/target/cgroups
mkdir -p "$build"
cargo build --quiet --locked --workspace --bins

kernel=$(find "$build/kernel/boot" -name 'vmlinuz-*' 2>/dev/null | head -n 1)
if [ -z "$kernel" ]; then
    package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
    say "fetching ${package:?no kernel package found; run apt-get update}"
    (cd "$build" && apt-get download -qq "$package" && dpkg -x linux-image-*.deb kernel && rm linux-image-*.deb)
    kernel=$(find "$build/kernel/boot" -name 'vmlinuz-*' | head -n 1)
fi

root=$build/root
rm -rf "$root"
mkdir -p "$root/bin" "$root/new" "$root/proc" "$root/sys" "$root/dev" "$root/tmp" "$root/root" "$root/etc"
ln -s bin "$root/sbin"
cp "$(command -v busybox)" "$root/bin/busybox"
for applet in $("$root/bin/busybox" --list | grep -vx -e busybox -e setpriv); do
    ln -s busybox "$root/bin/$applet"
done
mkdir -p "$root/usr/bin"
cp "$(command -v bwrap)" "$(command -v setpriv)" "$root/usr/bin/"
for program in colibri colibri-daemon colibri-shim colibri-proxy colibri-sandbox colibri-adapter; do
    cp "target/debug/$program" "$root/bin/"
    strip "$root/bin/$program"
done
for library in $(ldd "$root"/usr/bin/* "$root"/bin/colibri* | grep -o '/[^ ]*\.so[^ ]*' | sort -u); do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
done
printf 'root:x:0:0::/root:/bin/sh\nagent:x:1000:1000::/tmp/agent:/bin/sh\n' >"$root/etc/passwd"
printf 'root:x:0:\nagent:x:1000:\n' >"$root/etc/group"
cp tests/cgroups/guest.sh "$root/init"
(cd "$root" && find . | cpio --quiet -o -H newc | gzip -1) >"$build/initramfs"

say "testing limits in a virtual machine"
# quiet and loglevel=1 keep kernel messages out of the TAP output.
timeout 300 qemu-system-x86_64 -accel tcg -m 2048 -smp 2 -nographic -no-reboot -nodefaults -serial stdio \
    -kernel "$kernel" -initrd "$build/initramfs" -append 'console=ttyS0 quiet loglevel=1 panic=-1' \
    </dev/null | tr -d '\r' >"$build/log" || true
grep -a -E '^(ok|not ok|1\.\.)' "$build/log" >&2 || true
planned=$(sed -n 's/^1\.\.//p' "$build/log")
passed=$(grep -a -c '^ok ' "$build/log" || true)
if [ -z "$planned" ] || [ "$planned" != "$passed" ]; then
    tail -n 60 "$build/log" >&2
    die "only $passed of ${planned:-an unknown number of} checks passed; see $build/log"
fi
say "all $passed checks passed"
