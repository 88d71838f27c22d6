#!/bin/sh
# Lints and links every program for FreeBSD on a Debian host, and verifies that the results are FreeBSD binaries.
#
# rustup's stable toolchain lacks a FreeBSD standard library, so Debian's Rust compiles one from source. zig links: it
# contains FreeBSD's headers and libraries.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

TARGET=x86_64-unknown-freebsd
ZIG_VERSION=0.16.0
BUILD=$PWD/target/freebsd
TOOLS=$PWD/target/tools

install_packages rustc-web rust-web-src libstd-rust-web-dev cargo-web rust-web-clippy file python3 python3-pip

if [ ! -x "$TOOLS/zig/ziglang/zig" ]; then
    say "installing zig $ZIG_VERSION"
    mkdir -p "$TOOLS"
    python3 -m pip install --quiet --disable-pip-version-check --target "$TOOLS/zig" "ziglang==$ZIG_VERSION"
fi

# Drops libraries that zig lacks and no program uses, and replaces the name of the target by zig's.
cat >"$TOOLS/freebsd-cc" <<LINKER
#!/bin/sh
for word do
    shift
    case \$word in
        -lkvm | -lmemstat | -lprocstat | -ldevstat | -m64 | --target=*) ;;
        *) set -- "\$@" "\$word" ;;
    esac
done
exec "$TOOLS/zig/ziglang/zig" cc -target x86_64-freebsd "\$@"
LINKER
chmod +x "$TOOLS/freebsd-cc"

export RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Dwarnings
export CARGO_TARGET_DIR="$BUILD"
export CARGO_TARGET_X86_64_UNKNOWN_FREEBSD_LINKER="$TOOLS/freebsd-cc"
# A dependency of criterion contains C.
export CC_x86_64_unknown_freebsd="$TOOLS/freebsd-cc"
# Debug information slows linking, and these programs are not run.
export CARGO_PROFILE_DEV_DEBUG=false
unset RUSTUP_TOOLCHAIN RUSTC_WRAPPER || true

say "linting all targets for $TARGET, warnings are errors"
# Debian's cargo must find Debian's clippy instead of rustup's.
PATH=/usr/bin:$PATH /usr/bin/cargo clippy --quiet --locked -Zbuild-std --target "$TARGET" --workspace --all-targets

say "linking all programs for $TARGET"
/usr/bin/cargo build --quiet --locked -Zbuild-std --target "$TARGET" --workspace --bins

for program in colibri colibri-daemon colibri-shim colibri-proxy colibri-adapter colibri-jail-helper attack; do
    described=$(file -b "$BUILD/$TARGET/debug/$program")
    printf '%s: %s\n' "$program" "$described"
    case $described in
        ELF*FreeBSD*) ;;
        *) die "$program is not a FreeBSD program" ;;
    esac
done
