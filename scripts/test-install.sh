#!/bin/sh
# Installs Colibri in each way of docs/install.md, with programs of the dev profile, and takes it away again. This machine
# stays as it is: the package is installed into a copy-on-write view of its file system, in a mount namespace of its own.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

TARGET=${CARGO_TARGET_DIR:-target}

# The commands behind a mark `<!-- tested: NAME -->` in docs/install.md.
block() {
    found=$(awk -v mark="<!-- tested: $1 -->" '
        $0 == mark { wanted = 1; next }
        wanted && /^```sh$/ { inside = 1; next }
        inside && /^```$/ { exit }
        inside { print }' docs/install.md)
    [ -n "$found" ] || die "docs/install.md has no commands marked '$1'"
    printf '%s\n' "$found"
}

# Runs such commands, each shown.
perform() {
    block "$1" >"$place/block"
    sh -eux "$place/block"
}

is_gone() {
    for path; do
        [ ! -e "$path" ] || die "$path is left"
    done
}

# --- in the view ---------------------------------------------------------------------------------------------------

# A daemon and a run with what is installed, as the user behind these words.
works_as() {
    # shellcheck disable=SC2016 # for that shell
    said=$(block use | "$@" env -i PATH=/usr/local/bin:/usr/bin:/bin HOME=/var/tmp/try-home \
        XDG_RUNTIME_DIR=/run/user-of-tryer sh -eu 2>&1) || die "not usable: $said"
    case $said in
        *"hello from "*) ;;
        *) die "no word from the agent: $said" ;;
    esac
}

in_the_view() {
    place=$(mktemp -d)
    perform package

    say "the programs, as an ordinary user"
    useradd --create-home --home-dir /var/tmp/try-home tryer
    install -d -m 700 -o tryer -g tryer /run/user-of-tryer
    works_as setpriv --reuid tryer --regid tryer --init-groups

    say "the machine's daemon, as its unit starts it"
    systemd-analyze verify --man=no /usr/lib/systemd/system/colibri.service
    XDG_RUNTIME_DIR=$place systemd-analyze verify --man=no --user /usr/lib/systemd/user/colibri.service
    SUDO_USER=tryer perform group
    # systemd makes these.
    install -d -m 750 -o colibri -g colibri /run/colibri /var/lib/colibri
    grep '^Environment=' /usr/lib/systemd/system/colibri.service | cut -d= -f2- >"$place/environment"
    # shellcheck disable=SC2046 # words without spaces
    setpriv --reuid colibri --regid colibri --init-groups env -i $(cat "$place/environment") HOME=/var/lib/colibri \
        "$(sed -n 's/^ExecStart=//p' /usr/lib/systemd/system/colibri.service)" 2>"$place/log" &
    daemon=$!
    timeout 20 sh -c 'until [ -S /run/colibri/colibri.sock ]; do sleep 0.1; done' || die "it does not listen: $(cat "$place/log")"
    said=$(setpriv --reuid tryer --regid tryer --init-groups env COLIBRI_SOCKET=/run/colibri/colibri.sock \
        colibri run --jail-path / -- id -un)
    [ "$said" = colibri ] || die "an agent of the machine's daemon is $said"
    kill "$daemon"
    wait "$daemon" || die "the daemon ended badly: $(cat "$place/log")"

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
    [ "$(stat -c %a /usr/libexec/colibri-jail-helper)" = 755 ] || die "the helper is setuid from the beginning"
    perform helper
    [ "$(stat -c %U:%a /usr/libexec/colibri-jail-helper)" = root:4755 ] || die "the helper is not setuid"
    setpriv --reuid tryer --regid tryer --init-groups /usr/libexec/colibri-jail-helper check ||
        [ $? = 77 ] || die "the helper does not read its policy"
    perform 'no helper'
    perform helper
    rm /etc/colibri/helper.toml

    say "purge"
    touch /var/lib/colibri/left
    perform purge
    userdel --remove tryer 2>/dev/null
    rm -rf "$place" /run/user-of-tryer
    is_gone /usr/bin/colibri* /usr/libexec/colibri* /etc/colibri /var/lib/colibri /run/colibri /usr/share/doc/colibri \
        /usr/lib/systemd/*/colibri.service /usr/lib/sysusers.d/colibri.conf
    if getent passwd colibri || getent group colibri; then
        die "the user or group colibri is left"
    fi
    find /etc /usr /opt /run /var/lib -xdev -name '*colibri*' -newer "$marker" -not -path '/var/lib/apt/*' >"$marker.left"
    [ ! -s "$marker.left" ] || die "left behind: $(cat "$marker.left")"
}

# Lays the view over the whole file system, and goes on in it. What is written there is in memory.
lay_view() {
    mount --make-rprivate /
    mount -t tmpfs -o mode=755 tmpfs "$1"
    mkdir "$1/upper" "$1/work" "$1/view"
    mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/view"
    mount -t proc proc "$1/view/proc"
    mount --rbind /sys "$1/view/sys"
    # Devices of its own: what replaces a file in there must not replace this machine's.
    mount -t tmpfs -o mode=755 tmpfs "$1/view/dev"
    for device in null zero full random urandom tty; do
        touch "$1/view/dev/$device"
        mount --bind "/dev/$device" "$1/view/dev/$device"
    done
    mkdir -m 1777 "$1/view/dev/shm"
    ln -s /proc/self/fd "$1/view/dev/fd"
    # As after a boot, and without a systemd that could be asked for anything.
    mount -t tmpfs -o mode=755 tmpfs "$1/view/run"
    # What docs/install.md finds in the repository.
    mkdir -p "$1/view/try/docs" "$1/view/try/target/debian" "$1/view/old"
    cp docs/install.md "$1/view/try/docs/"
    cp "$TARGET"/debian-dev/colibri_*.deb "$1/view/try/target/debian/"
    cd "$1/view"
    pivot_root . old
    umount -l /old
    rmdir /old
    cd /try
    marker=$(mktemp)
    in_the_view
}

if [ "${1:-}" = --view ]; then
    lay_view "$2"
    exit 0
fi

# --- on this machine -----------------------------------------------------------------------------------------------

install_packages bash zsh fish lintian mandoc systemd util-linux passwd
scripts/deb.sh --dev
say "lintian"
lintian --allow-root --fail-on error,warning "$TARGET"/debian-dev/colibri_*.deb

place=$(mktemp -d /var/tmp/colibri-install-XXXXXX)
trap 'as_root rm -rf "$place"' EXIT
tried() {
    HOME=$place env -u XDG_RUNTIME_DIR COLIBRI_SOCKET="$place/run/colibri.sock" COLIBRI_STATE_DIR="$place/state" PATH="$1:/usr/bin:/bin" \
        sh -euc 'colibri run --jail-path / -- true && colibri shutdown' 2>"$place/said" || die "$1: $(cat "$place/said")"
    rm -rf "$place/state" "$place/run"
}

say "make install"
DESTDIR=$place/dest PREFIX=/opt/colibri scripts/install.sh "$TARGET/debug"
tried "$place/dest/opt/colibri/bin"
grep -q '^ExecStart=/opt/colibri/bin/colibri-daemon$' "$place/dest/opt/colibri/lib/systemd/system/colibri.service" || die "the unit names another program"

say "cargo install"
# As written, but in the profile that is compiled already.
block cargo | sed 's/^cargo install /&--quiet --debug --force /' >"$place/block"
CARGO_INSTALL_ROOT=$place/cargo CARGO_TARGET_DIR=$(realpath "$TARGET") sh -eux "$place/block"
tried "$place/cargo/bin"

say "the package, in a view of this machine"
mkdir "$place/view"
as_root env "PATH=$PATH" "CARGO_TARGET_DIR=$TARGET" unshare --mount --pid --fork scripts/test-install.sh --view "$place/view"
say "installed, used and removed"
