#!/bin/sh
# Creates a package from built programs, without a ports tree, and prints its path. pkg add installs it.
#
# usage: packaging/freebsd/package.sh DIRECTORY [OUTPUT]
#
# DIRECTORY contains the programs, OUTPUT (.) receives colibri-VERSION.pkg. PKG is the pkg(8) to use. COLIBRI is the program
# that prints the completions; see install.sh.
set -eu

cannot() {
    printf 'package.sh: %s\n' "$*" >&2
    exit 1
}

if [ $# = 0 ] || [ $# -gt 2 ] || [ ! -d "$1" ]; then
    echo "usage: packaging/freebsd/package.sh DIRECTORY [OUTPUT], where DIRECTORY contains the programs" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
port=$here/port
pkg=${PKG:-pkg}
output=${2:-.}
command -v "$pkg" >/dev/null || cannot "cannot find $pkg; install it, or set PKG to the path of pkg-static"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# variable NAME: prints a variable of the port.
variable() { sed -n "s/^$1=[[:blank:]]*//p" "$port/Makefile"; }

umask 022
mkdir "$work/stage" "$work/meta" "$output" 2>/dev/null || [ -d "$output" ]
DESTDIR=$work/stage PREFIX=/usr/local "$here/install.sh" "$1"

sed 's|%%EXAMPLESDIR%%|share/examples/colibri|' "$port/pkg-plist" >"$work/plist"
{
    printf 'name: %s\norigin: %s/%s\n' "$(variable PORTNAME)" "$(variable CATEGORIES)" "$(variable PORTNAME)"
    printf 'version: "%s"\n' "$(variable DISTVERSION)"
    printf 'comment: "%s"\nmaintainer: "%s"\n' "$(variable COMMENT)" "$(variable MAINTAINER)"
    printf 'www: "%s"\nprefix: /usr/local\n' "$(variable WWW)"
    printf 'categories: [%s]\nlicenselogic: single\nlicenses: [%s]\n' "$(variable CATEGORIES)" "$(variable LICENSE)"
    printf 'users: [%s]\ngroups: [%s]\n' "$(variable USERS)" "$(variable GROUPS)"
} >"$work/meta/+MANIFEST"
cp "$port/pkg-descr" "$work/meta/+DESC"
cp "$port/pkg-message" "$work/meta/+DISPLAY"
cp "$port/pkg-install" "$work/meta/+INSTALL"
cp "$port/pkg-deinstall" "$work/meta/+DEINSTALL"
# The ports tree generates such commands from USERS and GROUPS, with the ids that it reserves.
cat >"$work/meta/+PRE_INSTALL" <<'SCRIPT'
pw() {
    if [ "${PKG_ROOTDIR:-/}" = / ]; then
        command pw "$@"
    else
        command pw -R "$PKG_ROOTDIR" "$@"
    fi
}
pw groupshow colibri >/dev/null 2>&1 || pw groupadd colibri || exit 1
pw usershow colibri >/dev/null 2>&1 ||
    pw useradd colibri -g colibri -c 'Colibri daemon' -d /nonexistent -s /usr/sbin/nologin -w no || exit 1
SCRIPT

"$pkg" -o PLIST_KEYWORDS_DIR="$here/keywords" create -q -m "$work/meta" -p "$work/plist" -r "$work/stage" -o "$output" ||
    cannot "pkg create failed; see its message"
ls "$output/colibri-$(variable DISTVERSION).pkg"
