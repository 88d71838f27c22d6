#!/bin/sh
# Builds the programs of the previous release into target/previous, for the upgrade tests.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

# The last commit with control protocol 1 and without a format of the state directory.
commit=b1251b4f3564
target=${CARGO_TARGET_DIR:-$PWD/target}
previous=$target/previous

if [ "$(cat "$previous/commit" 2>/dev/null)" = "$commit" ]; then
    exit 0
fi
repository() { git -c safe.directory="$PWD" "$@"; }
has_commit() { repository cat-file -e "$commit^{commit}" 2>/dev/null; }
# Completes the history of a shallow clone.
has_commit || repository fetch --quiet --unshallow 2>/dev/null || true
has_commit ||
    die "cannot build the previous release: commit $commit is missing in this clone; run: git fetch --unshallow"
say "building the programs of commit $commit (once; about two minutes)"
sources=$(mktemp -d)
trap 'rm -rf "$sources"' EXIT
repository archive "$commit" | tar -x -C "$sources"
# A separate target directory: the programs of both releases have the same names.
CARGO_TARGET_DIR=$previous/build cargo build --quiet --locked --manifest-path "$sources/Cargo.toml" \
    -p colibri-shim -p colibri-daemon -p colibri-cli --bins
for program in colibri colibri-daemon colibri-shim; do
    cp "$previous/build/debug/$program" "$previous/"
done
rm -rf "$previous/build"
echo "$commit" >"$previous/commit"
