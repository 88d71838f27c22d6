#!/bin/sh
# Builds the Debian package of all programs with cargo-deb and prints its path: target/debian/colibri_*.deb.
#
# --dev packages programs of the dev profile into target/debian-dev, for tests.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

CARGO_DEB=3.8.0
TARGET=${CARGO_TARGET_DIR:-target}
case ${1:-} in
    '') profile=release directory=release out=$TARGET/debian ;;
    --dev) profile=dev directory=debug out=$TARGET/debian-dev ;;
    *) die "usage: scripts/deb.sh [--dev]" ;;
esac

command -v dpkg-deb >/dev/null || die "cannot build a Debian package: dpkg-deb is missing; use Debian or Ubuntu"
setup
# dpkg-dev contains dpkg-shlibdeps, which finds the required libraries.
install_packages dpkg-dev
if [ "$(cargo deb --version 2>/dev/null)" != "cargo-deb $CARGO_DEB" ]; then
    say "installing cargo-deb $CARGO_DEB (once; some minutes)"
    cargo install --quiet --locked "cargo-deb@$CARGO_DEB"
fi

say "building ($profile)"
cargo build --quiet --locked --profile "$profile" --workspace --bins
mkdir -p target/generated "$out"
for shell in bash zsh fish; do
    "$TARGET/$directory/colibri" completions "$shell" >"target/generated/colibri.$shell"
done
gzip -9n <CHANGELOG.md >target/generated/changelog.gz
rm -f "$out"/colibri_*.deb
cargo deb --quiet --locked --no-build --profile "$profile" --package colibri-cli --output "$out/" >&2
ls "$out"/colibri_*.deb
