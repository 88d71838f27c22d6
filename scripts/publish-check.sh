#!/bin/sh
# Checks that every library can be published: its metadata and README links, its package (built from the packaged files
# alone), and its public API against the snapshot in docs/api. --update rewrites the snapshots instead.
#
# usage: scripts/publish-check.sh [--update]
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

update=
case "$*" in
    '') ;;
    --update) update=1 ;;
    *) die "usage: scripts/publish-check.sh [--update]" ;;
esac
target=${CARGO_TARGET_DIR:-$PWD/target}
libraries=
for manifest in crates/*/Cargo.toml; do
    grep -q '^publish = false' "$manifest" || libraries="$libraries $(sed -n 's/^name = "\(colibri-.*\)"/\1/p' "$manifest" | head -n 1)"
done

say "metadata of the libraries"
for library in $libraries; do
    for field in description documentation readme keywords categories; do
        grep -q "^$field = " "crates/$library/Cargo.toml" || die "crates/$library/Cargo.toml has no $field; add it"
    done
    grep -qE '^## Stability' "crates/$library/README.md" ||
        die "crates/$library/README.md has no section Stability; state a decision for each public type"
    # crates.io and docs.rs do not resolve paths in the repository.
    if grep -nE '\]\(([^h#]|h[^t])' "crates/$library/README.md" >&2; then
        die "crates/$library/README.md has relative links, see above; replace them with URLs or plain text"
    fi
done

say "packages of the libraries"
cargo fetch --quiet --locked
# Cargo does not rebuild a package of the same version: remove the packages that it has unpacked and compiled before.
build=$target/publish
rm -rf "${CARGO_HOME:-$HOME/.cargo}"/registry/src/-*/colibri-* "$build"/debug/.fingerprint/colibri-*
# shellcheck disable=SC2086,SC2046 # lists of words
cargo package --quiet --locked --offline --allow-dirty --target-dir "$build" $(printf -- '-p %s ' $libraries)

# rustdoc's JSON is unstable: its format is that of the minimum Rust version, and so is the reader in scripts/public-api.
version=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
toolchain=
case "$(rustc --version)" in
    "rustc $version."*) ;;
    *)
        command -v rustup >/dev/null || die "install Rust $version or rustup: the public API is read from the rustdoc JSON of Rust $version"
        rustup toolchain list | grep -q "^$version\.0-" || {
            say "installing Rust $version (once; about a minute)"
            rustup toolchain install "$version.0" --profile minimal --no-self-update >/dev/null 2>&1 ||
                die "cannot install Rust $version; run: rustup toolchain install $version.0"
        }
        toolchain=+$version.0
        ;;
esac

say "public API of the libraries"
build=$target/public-api
cargo build --quiet --locked --manifest-path scripts/public-api/Cargo.toml --target-dir "$build"
[ -z "$update" ] || mkdir -p docs/api
changed=
for library in $libraries; do
    # shellcheck disable=SC2086 # no word without a toolchain
    RUSTC_BOOTSTRAP=1 cargo $toolchain rustdoc --quiet --locked -p "$library" --lib --all-features --target-dir "$build" -- \
        -Z unstable-options --output-format json
    snapshot=docs/api/$library.txt
    "$build/debug/colibri-public-api" "$build/doc/$(echo "$library" | tr - _).json" >"$build/$library.txt"
    if [ -n "$update" ]; then
        cp "$build/$library.txt" "$snapshot"
    elif ! diff -u "$snapshot" "$build/$library.txt" >&2; then
        changed="$changed $library"
    fi
done
[ -z "$changed" ] ||
    die "the public API changed, see above:$changed; if a breaking change is intended, update the version and run scripts/publish-check.sh --update"
