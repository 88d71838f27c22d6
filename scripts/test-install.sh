#!/bin/sh
# Installs and removes Colibri in each way of docs/install.md, with programs of the dev profile. The package is installed into
# an overlay of the file system in a separate mount namespace, so this machine does not change.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

TARGET=${CARGO_TARGET_DIR:-target}

# Prints the commands after the marker `<!-- tested: NAME -->` in docs/install.md.
block() {
    found=$(awk -v mark="<!-- tested: $1 -->" '
        $0 == mark { wanted = 1; next }
        wanted && /^```sh$/ { inside = 1; next }
        inside && /^```$/ { exit }
        inside { print }' docs/install.md)
    [ -n "$found" ] || die "docs/install.md has no commands marked '$1'"
    printf '%s\n' "$found"
}

# Runs these commands and shows each.
run_block() {
    block "$1" >"$scratch/block"
    sh -eux "$scratch/block"
}

assert_removed() {
    for path; do
        [ ! -e "$path" ] || die "$path was not removed"
    done
}

# --- in the overlay ---------------------------------------------------------------------------------------------------

# Starts the installed daemon and an agent as a user: the arguments are a command prefix that changes the user.
works_as() {
    # shellcheck disable=SC2016 # for that shell
    output=$(block use | "$@" env -i PATH=/usr/local/bin:/usr/bin:/bin HOME=/var/tmp/try-home \
        XDG_RUNTIME_DIR=/run/user-of-tryer sh -eu 2>&1) || die "the installed programs fail: $output"
    case $output in
        *"hello from "*) ;;
        *) die "the agent printed no greeting: $output" ;;
    esac
}

test_package() {
    scratch=$(mktemp -d)
    run_block package

    say "the installed programs, as an ordinary user"
    useradd --create-home --home-dir /var/tmp/try-home tryer
    install -d -m 700 -o tryer -g tryer /run/user-of-tryer
    works_as setpriv --reuid tryer --regid tryer --init-groups

    say "the daemon of the system unit"
    systemd-analyze verify --man=no /usr/lib/systemd/system/colibri.service
    XDG_RUNTIME_DIR=$scratch systemd-analyze verify --man=no --user /usr/lib/systemd/user/colibri.service
    SUDO_USER=tryer run_block group
    # systemd creates these.
    install -d -m 750 -o colibri -g colibri /run/colibri /var/lib/colibri
    grep '^Environment=' /usr/lib/systemd/system/colibri.service | cut -d= -f2- >"$scratch/environment"
    # shellcheck disable=SC2046 # words without spaces
    setpriv --reuid colibri --regid colibri --init-groups env -i $(cat "$scratch/environment") HOME=/var/lib/colibri \
        "$(sed -n 's/^ExecStart=//p' /usr/lib/systemd/system/colibri.service)" 2>"$scratch/log" &
    daemon=$!
    timeout 20 sh -c 'until [ -S /run/colibri/colibri.sock ]; do sleep 0.1; done' || die "the daemon does not listen: $(cat "$scratch/log")"
    output=$(setpriv --reuid tryer --regid tryer --init-groups env COLIBRI_SOCKET=/run/colibri/colibri.sock \
        colibri run --jail-path / -- id -un)
    [ "$output" = colibri ] || die "an agent of the system daemon runs as $output"
    kill "$daemon"
    wait "$daemon" || die "the daemon failed: $(cat "$scratch/log")"

    say "completions"
    # shellcheck disable=SC2016 # for those shells
    bash -ec '. /usr/share/bash-completion/completions/colibri; COMP_WORDS=(colibri eve) COMP_CWORD=1
        _colibri colibri eve colibri; [ "${COMPREPLY[*]}" = events ]'
    # shellcheck disable=SC2016
    zsh -fec 'fpath=(/usr/share/zsh/vendor-completions $fpath); autoload -Uz compinit; compinit -u -D
        [ "$_comps[colibri]" = _colibri ]; autoload +X _colibri'
    fish -c 'complete -C "colibri eve"' | grep -q '^events'

    say "manual pages"
    for page in colibri.1 colibri-daemon.8 colibri-jail-helper.8 helper.toml.5; do
        gzip -dc "/usr/share/man/man${page##*.}/$page.gz" | mandoc -Tutf8 >/dev/null
    done

    say "the helper"
    [ "$(stat -c %a /usr/libexec/colibri-jail-helper)" = 755 ] || die "the package installs the helper with the setuid bit"
    run_block helper
    [ "$(stat -c %U:%a /usr/libexec/colibri-jail-helper)" = root:4755 ] || die "the helper is not setuid"
    setpriv --reuid tryer --regid tryer --init-groups /usr/libexec/colibri-jail-helper check ||
        [ $? = 77 ] || die "the helper does not read its policy"
    run_block 'no helper'
    run_block helper
    rm /etc/colibri/helper.toml

    say "purge"
    touch /var/lib/colibri/left
    run_block purge
    userdel --remove tryer 2>/dev/null
    rm -rf "$scratch" /run/user-of-tryer
    assert_removed /usr/bin/colibri* /usr/libexec/colibri* /etc/colibri /var/lib/colibri /run/colibri /usr/share/doc/colibri \
        /usr/lib/systemd/*/colibri.service /usr/lib/sysusers.d/colibri.conf
    if getent passwd colibri || getent group colibri; then
        die "the user or group colibri was not removed"
    fi
    find /etc /usr /opt /run /var/lib -xdev -name '*colibri*' -newer "$marker" -not -path '/var/lib/apt/*' >"$marker.left"
    [ ! -s "$marker.left" ] || die "files were not removed: $(cat "$marker.left")"
}

# Mounts an overlay over the whole file system, enters it and runs the test. Writes go to memory.
enter_overlay() {
    mount --make-rprivate /
    mount -t tmpfs -o mode=755 tmpfs "$1"
    mkdir "$1/upper" "$1/work" "$1/merged"
    mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/merged"
    mount -t proc proc "$1/merged/proc"
    mount --rbind /sys "$1/merged/sys"
    # A separate /dev: replacing a file in it must not replace this machine's.
    mount -t tmpfs -o mode=755 tmpfs "$1/merged/dev"
    for device in null zero full random urandom tty; do
        touch "$1/merged/dev/$device"
        mount --bind "/dev/$device" "$1/merged/dev/$device"
    done
    mkdir -m 1777 "$1/merged/dev/shm"
    ln -s /proc/self/fd "$1/merged/dev/fd"
    # Empty as after a boot, so no systemd is reachable.
    mount -t tmpfs -o mode=755 tmpfs "$1/merged/run"
    # The files of the repository that docs/install.md uses.
    mkdir -p "$1/merged/try/docs" "$1/merged/try/target/debian" "$1/merged/old"
    cp docs/install.md "$1/merged/try/docs/"
    cp "$TARGET"/debian-dev/colibri_*.deb "$1/merged/try/target/debian/"
    cd "$1/merged"
    pivot_root . old
    umount -l /old
    rmdir /old
    cd /try
    marker=$(mktemp)
    test_package
}

if [ "${1:-}" = --overlay ]; then
    enter_overlay "$2"
    exit 0
fi

# --- on this machine -----------------------------------------------------------------------------------------------

install_packages bash zsh fish lintian mandoc systemd util-linux passwd
scripts/deb.sh --dev
say "lintian"
lintian --allow-root --fail-on error,warning "$TARGET"/debian-dev/colibri_*.deb

scratch=$(mktemp -d /var/tmp/colibri-install-XXXXXX)
trap 'as_root rm -rf "$scratch"' EXIT
check_programs() {
    HOME=$scratch env -u XDG_RUNTIME_DIR COLIBRI_SOCKET="$scratch/run/colibri.sock" COLIBRI_STATE_DIR="$scratch/state" PATH="$1:/usr/bin:/bin" \
        sh -euc 'colibri run --jail-path / -- true && colibri shutdown' 2>"$scratch/output" || die "$1: $(cat "$scratch/output")"
    rm -rf "$scratch/state" "$scratch/run"
}

say "make install"
DESTDIR=$scratch/dest PREFIX=/opt/colibri scripts/install.sh "$TARGET/debug"
check_programs "$scratch/dest/opt/colibri/bin"
grep -q '^ExecStart=/opt/colibri/bin/colibri-daemon$' "$scratch/dest/opt/colibri/lib/systemd/system/colibri.service" || die "the unit starts another program"

say "cargo install"
# As documented, but in the compiled profile.
block cargo | sed 's/^cargo install /&--quiet --debug --force /' >"$scratch/block"
CARGO_INSTALL_ROOT=$scratch/cargo CARGO_TARGET_DIR=$(realpath "$TARGET") sh -eux "$scratch/block"
check_programs "$scratch/cargo/bin"

say "the package, in an overlay of this machine"
mkdir "$scratch/overlay"
as_root env "PATH=$PATH" "CARGO_TARGET_DIR=$TARGET" unshare --mount --pid --fork scripts/test-install.sh --overlay "$scratch/overlay"
say "installed, tested and removed"
