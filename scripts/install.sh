#!/bin/sh
# Installs programs, manual pages, completions and units under PREFIX (/usr/local), inside DESTDIR if that is set. On FreeBSD,
# packaging/freebsd/install.sh does it.
#
# usage: scripts/install.sh [DIRECTORY]; installs the programs of DIRECTORY, or builds them in the release profile.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

prefix=${DESTDIR:-}${PREFIX:-/usr/local}
programs=${1:-}
if [ -z "$programs" ]; then
    say "building"
    cargo build --quiet --locked --release --workspace --bins
    programs=${CARGO_TARGET_DIR:-target}/release
fi
if [ "$(uname)" = FreeBSD ]; then
    exec packaging/freebsd/install.sh "$programs"
fi

install -d "$prefix/bin" "$prefix/libexec"
install -m 755 "$programs/colibri" "$programs/colibri-daemon" "$prefix/bin/"
# The helper is not setuid; docs/install.md describes how root sets the bit, which another installation keeps.
helper=$prefix/libexec/colibri-jail-helper
is_setuid=
[ ! -u "$helper" ] || is_setuid=1
install -m 755 "$programs/colibri-shim" "$programs/colibri-proxy" "$programs/colibri-sandbox" "$programs/colibri-adapter" \
    "$programs/colibri-jail-helper" "$prefix/libexec/"
[ -z "$is_setuid" ] || chmod 4755 "$helper"
for page in docs/man/*.[1-9]; do
    section=$prefix/share/man/man${page##*.}
    install -d "$section"
    install -m 644 "$page" "$section/"
done
# Each shell expects another file name.
while read -r shell file; do
    install -d "$(dirname "$prefix/$file")"
    "$programs/colibri" completions "$shell" >"$prefix/$file"
    chmod 644 "$prefix/$file"
done <<FILES
bash share/bash-completion/completions/colibri
zsh share/zsh/site-functions/_colibri
fish share/fish/vendor_completions.d/colibri.fish
FILES
install -d "$prefix/share/doc/colibri"
install -m 644 docs/colibri.toml "$prefix/share/doc/colibri/"
# The units contain the path of the program.
for kind in system user; do
    units=$prefix/lib/systemd/$kind
    install -d "$units"
    sed "s|/usr/bin/|${PREFIX:-/usr/local}/bin/|" "packaging/systemd/$kind/colibri.service" >"$units/colibri.service"
    chmod 644 "$units/colibri.service"
done
install -d "$prefix/lib/sysusers.d"
install -m 644 packaging/systemd/sysusers.d/colibri.conf "$prefix/lib/sysusers.d/"
