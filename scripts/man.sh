#!/bin/sh
# Lints the manual pages in docs/man with mandoc and renders them into target/man.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

command -v mandoc >/dev/null || install_packages mandoc
mandoc -Tlint -Wwarning docs/man/*.[1-9] >&2 || die "mandoc reports problems; fix them, see mdoc(7)"
mkdir -p target/man
for page in docs/man/*.[1-9]; do
    mandoc -Tutf8 -Owidth=90 "$page" | sed 's/.\x08//g' >"target/man/$(basename "$page").txt"
done
