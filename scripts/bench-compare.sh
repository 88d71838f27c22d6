#!/bin/sh
# Measures two commits against each other, interleaved in one run, and says which differences are more than noise.
#
# usage: scripts/bench-compare.sh [BASE [NEW [OPTIONS of colibri-bench compare]]]
# BASE is HEAD~1 where nothing is said, NEW the working tree (also as '').
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

setup
kept=$PWD/target/bench/compare
tree=$kept/tree

drop_tree() {
    [ ! -e "$tree" ] || git worktree remove --force "$tree"
    git worktree prune
}

# Leaves the programs of a commit in $kept/COMMIT. All commits share what is built of other crates.
build() {
    [ -e "$kept/$1/colibri-daemon" ] && return
    say "building $(git log -1 --format='%h %s' "$1")"
    drop_tree
    git worktree add --quiet --detach "$tree" "$1"
    (cd "$tree" && CARGO_TARGET_DIR=$kept/build cargo build --quiet --locked --release --workspace --bins)
    mkdir -p "$kept/$1"
    # The daemon last: it says that all are there.
    for program in colibri-shim colibri-proxy colibri-daemon; do
        cp "$kept/build/release/$program" "$kept/$1/"
    done
    drop_tree
}

commit() {
    git rev-parse --verify --quiet --end-of-options "$1^{commit}" || die "$1 is no commit of this repository"
}

base=$(commit "${1:-HEAD~1}")
new=${2:-}
[ -z "$new" ] || new=$(commit "$new")
shift "$(($# < 2 ? $# : 2))"

trap drop_tree EXIT
build "$base"
say "building the working tree"
cargo build --quiet --locked --release --workspace --bins
ours=${CARGO_TARGET_DIR:-target}/release
[ -z "$new" ] || build "$new"
"$ours/colibri-bench" compare --base "$kept/$base" --new "${new:+$kept/}${new:-$ours}" "$@"
