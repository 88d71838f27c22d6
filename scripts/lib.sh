# Shared by the scripts beside it, which source it from the root of the repository.
# shellcheck shell=sh

say() { printf '==> %s\n' "$*" >&2; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root and there is no sudo; as root run: $*"
    fi
}

# Installs those Debian packages that are missing.
install_packages() {
    missing=
    for package in "$@"; do
        dpkg -s "$package" 2>/dev/null | grep -q '^Status: install ok installed' || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    command -v apt-get >/dev/null || die "install these packages of your system:$missing"
    say "installing$missing"
    as_root apt-get update -qq
    # shellcheck disable=SC2086 # a list of words
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

# install_from_npm NAME DIRECTORY PROGRAM: puts what DIRECTORY locks into target/tools/NAME, once, and tries PROGRAM.
install_from_npm() {
    tools=${CARGO_TARGET_DIR:-$PWD/target}/tools
    cmp -s "$2/package-lock.json" "$tools/$1/package-lock.json" && return 0
    command -v npm >/dev/null || install_packages npm
    say "installing $1 (once; about a minute)"
    rm -rf "${tools:?}/$1" "$tools/$1.new"
    mkdir -p "$tools/$1.new"
    cp "$2/package.json" "$2/package-lock.json" "$tools/$1.new"
    npm ci --prefix "$tools/$1.new" --no-audit --no-fund --loglevel error >&2
    # First those that came with it: the machine's own node may be too old.
    PATH=$tools/$1.new/node_modules/.bin:$PATH "$3" --version >&2 ||
        die "$3 does not start; remove $tools/$1.new and try again"
    mv "$tools/$1.new" "$tools/$1"
}

# Builds the programs, and puts them in front of all others.
build_and_use() {
    say "building"
    cargo build --quiet --locked --workspace --bins
    PATH=$PWD/${CARGO_TARGET_DIR:-target}/debug:$PATH
    [ -z "${CARGO_TARGET_DIR:-}" ] || PATH=$CARGO_TARGET_DIR/debug:$PATH
}

# What building and running Colibri on Linux needs.
setup() {
    command -v cargo >/dev/null || die "Rust is needed: see https://rustup.rs, or install the package rustup of your system"
    command -v cc >/dev/null || install_packages gcc libc6-dev
    command -v bwrap >/dev/null || install_packages bubblewrap
    bwrap --unshare-user --unshare-pid --ro-bind / / --proc /proc true || die \
        "bubblewrap cannot make a sandbox here. On Ubuntu 24.04 and later allow it user namespaces: sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0. In a container, the container must allow them: docker run --security-opt seccomp=unconfined --security-opt systempaths=unconfined"
}
