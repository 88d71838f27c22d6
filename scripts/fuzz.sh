#!/bin/sh
# Fuzzes each target in fuzz/, starting from its seeds and the corpus of earlier runs. The stable toolchain is enough: the
# flags are those of cargo-fuzz without a sanitizer, which finds little in code without unsafe.
#
# usage: scripts/fuzz.sh [SECONDS [TARGET…]]; 20 seconds per target by default
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

seconds=${1:-20}
[ $# = 0 ] || shift
[ $# != 0 ] || set -- wire journal glasspane helper

command -v c++ >/dev/null || install_packages g++
host=$(rustc -vV | sed -n 's/^host: //p')
build=$PWD/target/fuzz
say "building the fuzz targets"
# --target keeps the flags from build scripts.
RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing" \
    cargo build --quiet --locked --release --manifest-path fuzz/Cargo.toml --target "$host" --target-dir "$build"

for target do
    corpus=$build/corpus/$target
    mkdir -p "$corpus" "$build/artifacts/$target"
    say "fuzzing $target for $seconds s"
    "$build/$host/release/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=512 -max_len=65536 \
        -print_final_stats=1 -artifact_prefix="$build/artifacts/$target/" "$corpus" "fuzz/seeds/$target" \
        >"$build/$target.log" 2>&1 || {
        tail -n 40 "$build/$target.log" >&2
        die "$target: see above; the input is in $build/artifacts/$target"
    }
    grep -E '^(Done|stat::number_of_executed_units|stat::new_units_added|stat::peak_rss_mb)' "$build/$target.log"
    grep -E 'cov: ' "$build/$target.log" | tail -n 1
done
