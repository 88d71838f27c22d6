# Functions of the scripts in this directory, which source it from the root of the repository.
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
        die "root is required and sudo is missing; run as root: $*"
    fi
}

# Installs missing Debian packages.
install_packages() {
    missing=
    for package in "$@"; do
        dpkg -s "$package" 2>/dev/null | grep -q '^Status: install ok installed' || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    command -v apt-get >/dev/null || die "packages are missing; install the equivalents of:$missing"
    say "installing$missing"
    as_root apt-get update -qq
    # shellcheck disable=SC2086 # a list of words
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

# Installs the programs that the attempts in tests/attacks use and attack.
install_attack_tools() {
    install_packages bash curl dbus gcc git gnupg iproute2 keyutils nscd openssh-client passwd perl procps python3 screen socat tmux \
        util-linux
}

# install_from_npm NAME DIRECTORY PROGRAM: installs the packages locked in DIRECTORY into target/tools/NAME, unless they are
# installed, and starts PROGRAM.
install_from_npm() {
    tools=${CARGO_TARGET_DIR:-$PWD/target}/tools
    cmp -s "$2/package-lock.json" "$tools/$1/package-lock.json" && return 0
    command -v npm >/dev/null || install_packages npm
    say "installing $1 (once; about a minute)"
    rm -rf "${tools:?}/$1" "$tools/$1.new"
    mkdir -p "$tools/$1.new"
    cp "$2/package.json" "$2/package-lock.json" "$tools/$1.new"
    npm ci --prefix "$tools/$1.new" --no-audit --no-fund --loglevel error >&2
    # Prefer the installed node: the machine's may be too old.
    PATH=$tools/$1.new/node_modules/.bin:$PATH "$3" --version >&2 ||
        die "cannot start $3; remove $tools/$1.new and try again"
    mv "$tools/$1.new" "$tools/$1"
}

# Builds the programs and prepends their directory to PATH.
build_and_use() {
    say "building (some minutes the first time)"
    cargo build --quiet --locked --workspace --bins
    PATH=$PWD/${CARGO_TARGET_DIR:-target}/debug:$PATH
    [ -z "${CARGO_TARGET_DIR:-}" ] || PATH=$CARGO_TARGET_DIR/debug:$PATH
}

# Checks and installs the requirements for building and running Colibri on Linux.
setup() {
    command -v cargo >/dev/null || die "cargo is missing; install Rust from https://rustup.rs or your system's package rustup"
    command -v cc >/dev/null || install_packages gcc libc6-dev
    command -v bwrap >/dev/null || install_packages bubblewrap
    bwrap --unshare-user --unshare-pid --ro-bind / / --proc /proc true || die \
        "bubblewrap cannot create a sandbox; allow user namespaces. Ubuntu 24.04 and later: sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0. In a container: docker run --security-opt seccomp=unconfined --security-opt systempaths=unconfined"
}
