#!/bin/sh
# Runs everything that CI runs: format, shell scripts, manual pages, dependencies, lints, tests, doctests, faults,
# fuzzing, the demo, limits in a virtual machine, and the FreeBSD lane.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

setup
# libfaketime: clock jumps. g++: libFuzzer. perl, passwd, strace, util-linux: attacks on the setuid helper. procps: ps must
# not show secrets. sudo: the example backend. tmux: the terminal of colibri top. python3-prometheus-client: parses metrics.
install_packages util-linux bash libfaketime g++ perl passwd procps python3 strace sudo mandoc shellcheck tmux \
    python3-prometheus-client
install_attack_tools
cargo nextest --version >/dev/null 2>&1 || {
    say "installing cargo-nextest (once; takes minutes)"
    cargo install --quiet --locked cargo-nextest
}
scripts/agents.sh

say "words, test names and commit subjects"
scripts/words.py
say "format"
cargo fmt --all --check
cargo fmt --check --manifest-path fuzz/Cargo.toml
cargo fmt --check --manifest-path scripts/public-api/Cargo.toml
cargo fmt --check --manifest-path examples/backend-sudo/Cargo.toml
say "shell scripts"
# All files with a shell's shebang, and those that other scripts source.
grep -rlIE --exclude-dir=target --exclude-dir=.git --exclude='*.rs' --exclude='*.md' '^#!.*[/ ](ba)?sh$' . |
    sort | xargs shellcheck --external-sources scripts/lib.sh
shellcheck --shell=sh examples/demo/repo/leap.sh
say "manual pages"
scripts/man.sh
scripts/audit.sh
scripts/publish-check.sh
say "lints"
cargo clippy --quiet --locked --workspace --all-targets -- -D warnings
cargo check --quiet --locked -p colibri-daemon --no-default-features
cargo clippy --quiet --locked --manifest-path examples/backend-sudo/Cargo.toml --target-dir target --all-targets -- -D warnings
say "tests"
# Tests that need root, mostly to run programs as other users.
needs_root='package(colibri-tests) and (binary(/^(attacks|helper.*|plugin|doctor|peer|threads)$/)
    or test(/fork_bomb|daemon_without_threads|without_runtime_directory|unprivileged_user/))'
if [ "$(id -u)" = 0 ]; then
    cargo nextest run --locked --workspace
else
    cargo nextest run --locked --workspace -E "not ($needs_root)"
    say "tests that need root"
    as_root env "PATH=$PATH" "HOME=$HOME" "CARGO_HOME=${CARGO_HOME:-$HOME/.cargo}" "RUSTUP_HOME=${RUSTUP_HOME:-$HOME/.rustup}" \
        cargo nextest run --locked -p colibri-tests -E "$needs_root"
fi
say "the example backend"
cargo test --quiet --locked --manifest-path examples/backend-sudo/Cargo.toml --target-dir target
say "doctests"
cargo test --quiet --locked --workspace --doc
say "torture"
scripts/torture.sh --rounds 200
scripts/fuzz.sh 20
say "benches, short versions"
scripts/bench.sh --smoke
cargo test --quiet --locked -p colibri-benches --benches
target=${CARGO_TARGET_DIR:-target}
"$target/debug/colibri-bench" compare --base "$target/debug" --new "$target/debug" --rounds 2 --agents 10 --mebibytes 4 \
    --results "$target/bench/smoke"
say "installation by cargo, by make and as a Debian package"
scripts/test-install.sh
say "demo"
scripts/demo.sh
if command -v apt-get >/dev/null; then
    scripts/cgroups.sh
else
    say "limits by cgroups: NOT tested, needs Debian's packages"
fi
if command -v apt-get >/dev/null; then
    say "FreeBSD"
    scripts/freebsd.sh
else
    say "FreeBSD: NOT checked, needs Debian's Rust packages"
fi
say "all passed"
