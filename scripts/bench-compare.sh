#!/bin/sh
# Benchmarks two commits against each other, interleaved in one run, and reports differences that exceed the noise.
#
# usage: scripts/bench-compare.sh [BASE [NEW [OPTIONS of colibri-bench compare]]]
# BASE defaults to HEAD~1, NEW to the working tree (also '').
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

setup
results=$PWD/target/bench/compare
tree=$results/tree

drop_tree() {
    [ ! -e "$tree" ] || git worktree remove --force "$tree"
    git worktree prune
}

# Builds the programs of a commit into $results/COMMIT. All commits share one target directory, and so the built dependencies.
build() {
    [ -e "$results/$1/colibri-daemon" ] && return
    say "building $(git log -1 --format='%h %s' "$1")"
    drop_tree
    git worktree add --quiet --detach "$tree" "$1"
    (cd "$tree" && CARGO_TARGET_DIR=$results/build cargo build --quiet --locked --release --workspace --bins)
    mkdir -p "$results/$1"
    # The daemon is copied last: it marks a complete set. A commit from before colibri-sandbox builds none.
    for program in colibri-shim colibri-proxy colibri-sandbox colibri-daemon; do
        [ ! -e "$tree/crates/$program" ] || cp "$results/build/release/$program" "$results/$1/"
    done
    drop_tree
}

commit() {
    git rev-parse --verify --quiet --end-of-options "$1^{commit}" || die "no commit $1 in this repository"
}

base=$(commit "${1:-HEAD~1}")
new=${2:-}
[ -z "$new" ] || new=$(commit "$new")
shift "$(($# < 2 ? $# : 2))"

trap drop_tree EXIT
build "$base"
say "building the working tree"
cargo build --quiet --locked --release --workspace --bins
programs=${CARGO_TARGET_DIR:-target}/release
[ -z "$new" ] || build "$new"
"$programs/colibri-bench" compare --base "$results/$base" --new "${new:+$results/}${new:-$programs}" "$@"
