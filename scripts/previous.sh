#!/bin/sh
# Builds the programs of the release before this one, for the tests of upgrades: in target/previous.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

# The last commit with control protocol 1 and without a format of the state directory.
commit=b1251b4f3564
target=${CARGO_TARGET_DIR:-$PWD/target}
place=$target/previous

if [ "$(cat "$place/commit" 2>/dev/null)" = "$commit" ]; then
    exit 0
fi
repository() { git -c safe.directory="$PWD" "$@"; }
has_commit() { repository cat-file -e "$commit^{commit}" 2>/dev/null; }
# A shallow clone gets the rest of its history.
has_commit || repository fetch --quiet --unshallow 2>/dev/null || true
has_commit ||
    die "the tests of upgrades build commit $commit, which this clone does not have; run: git fetch --unshallow"
say "building the programs of commit $commit (once; about two minutes)"
sources=$(mktemp -d)
trap 'rm -rf "$sources"' EXIT
repository archive "$commit" | tar -x -C "$sources"
# A target directory of its own: the programs of both releases have the same names.
CARGO_TARGET_DIR=$place/build cargo build --quiet --locked --manifest-path "$sources/Cargo.toml" \
    -p colibri-shim -p colibri-daemon -p colibri-cli --bins
for program in colibri colibri-daemon colibri-shim; do
    cp "$place/build/debug/$program" "$place/"
done
rm -rf "$place/build"
echo "$commit" >"$place/commit"
