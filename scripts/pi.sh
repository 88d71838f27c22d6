#!/bin/sh
# Installs the real pi that tests run, and a node that is new enough for it, into target/tools/pi. Once: what is
# there already stays.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

TOOLS=${CARGO_TARGET_DIR:-$PWD/target}/tools
if ! cmp -s tests/pi/package-lock.json "$TOOLS/pi/package-lock.json"; then
    command -v npm >/dev/null || install_packages npm
    say "installing pi (once; about a minute)"
    rm -rf "$TOOLS/pi" "$TOOLS/pi.new"
    mkdir -p "$TOOLS/pi.new"
    cp tests/pi/package.json "$TOOLS/pi.new"
    cp tests/pi/package-lock.json "$TOOLS/pi.new/package-lock.json"
    # The machine's own node may be too old for pi; the one that runs it comes with it.
    npm ci --prefix "$TOOLS/pi.new" --no-audit --no-fund --loglevel error >&2
    PATH=$TOOLS/pi.new/node_modules/.bin:$PATH pi --version >&2 || die "pi does not start; remove $TOOLS/pi.new and try again"
    mv "$TOOLS/pi.new" "$TOOLS/pi"
fi
