#!/bin/sh
# Installs Colibri for FreeBSD under PREFIX (/usr/local), inside DESTDIR if that is set. The port, package.sh and
# `make install` run this script; port/pkg-plist lists the installed files.
#
# usage: packaging/freebsd/install.sh DIRECTORY
#
# DIRECTORY contains the programs. COLIBRI is the absolute path of the program that prints the completions
# (DIRECTORY/colibri); set it if DIRECTORY contains programs of another system.
set -eu

if [ $# != 1 ] || [ ! -d "$1" ]; then
    echo "usage: packaging/freebsd/install.sh DIRECTORY, which contains the programs" >&2
    exit 2
fi
programs=$(cd "$1" && pwd)
colibri=${COLIBRI:-$programs/colibri}
cd "$(dirname "$0")/../.."

PREFIX=${PREFIX:-/usr/local}
prefix=${DESTDIR:-}$PREFIX

# put MODE SOURCE TARGET: installs a file, and creates its directory. Files that name /usr/local get PREFIX instead.
put() {
    install -d "$prefix/$(dirname "$3")"
    sed "s|/usr/local|$PREFIX|g" "$2" >"$work/file"
    install -m "$1" "$work/file" "$prefix/$3"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

install -d "$prefix/bin" "$prefix/libexec"
install -m 755 "$programs/colibri" "$programs/colibri-daemon" "$prefix/bin/"
# The package sets the helper's setuid bit; docs/freebsd.md describes how root sets it otherwise.
install -m 755 "$programs/colibri-shim" "$programs/colibri-proxy" "$programs/colibri-adapter" \
    "$programs/colibri-jail-helper" "$prefix/libexec/"

put 755 packaging/freebsd/rc.d/colibri etc/rc.d/colibri
put 755 packaging/freebsd/periodic/daily/490.colibri etc/periodic/daily/490.colibri

# A policy without rules: the setuid helper refuses all requests until root enables rules.
policy=crates/colibri-jail-helper/helper.toml.freebsd
sed '/^\[\[rule]]/,$ s/^[^#]/#&/' "$policy" >"$work/policy"
put 644 docs/colibri.toml etc/colibri/colibri.toml.sample
put 644 "$work/policy" etc/colibri/helper.toml.sample
put 644 packaging/freebsd/newsyslog.conf.d/colibri.conf etc/newsyslog.conf.d/colibri.conf.sample
put 644 packaging/freebsd/syslog.d/colibri.conf etc/syslog.d/colibri.conf.sample
# A package copies the samples when it is installed: @sample in port/pkg-plist.
if [ -z "${DESTDIR:-}" ]; then
    for name in colibri/colibri.toml colibri/helper.toml newsyslog.conf.d/colibri.conf syslog.d/colibri.conf; do
        [ -e "$prefix/etc/$name" ] || cp "$prefix/etc/$name.sample" "$prefix/etc/$name"
    done
fi

put 644 "$policy" share/examples/colibri/helper.toml
put 644 packaging/freebsd/jail.conf.d/agents.conf share/examples/colibri/agents.conf
put 644 packaging/freebsd/devfs.rules share/examples/colibri/devfs.rules

for page in docs/man/*.[1-9]; do
    put 644 "$page" "share/man/man${page##*.}/${page##*/}"
    gzip -9fn "$prefix/share/man/man${page##*.}/${page##*/}"
done

# Each shell expects another file name.
while read -r shell file; do
    "$colibri" completions "$shell" >"$work/completions"
    put 644 "$work/completions" "$file"
done <<FILES
bash share/bash-completion/completions/colibri
fish share/fish/vendor_completions.d/colibri.fish
zsh share/zsh/site-functions/_colibri
FILES
