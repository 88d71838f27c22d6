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

# Returns whether directory $2 is a complete installation of what directory $1 locks.
is_installed() {
    for file in package.json package-lock.json requirements.txt; do
        [ ! -e "$1/$file" ] || cmp -s "$1/$file" "$2/$file" || return 1
    done
    # A virtual environment refers to the system's Python, which an upgrade can remove.
    [ ! -L "$2/bin/python3" ] || [ -x "$2/bin/python3" ]
}

# install_tool NAME DIRECTORY COMMAND…: unless target/tools/NAME has what DIRECTORY locks, runs COMMAND, which installs it. COMMAND
# gets the arguments in $name and $directory, and the absolute path of target/tools in $tools. One process at a time installs NAME.
install_tool() {
    tools=${CARGO_TARGET_DIR:-$PWD/target}/tools
    is_installed "$2" "$tools/$1" && return 0
    mkdir -p "$tools"
    tools=$(cd "$tools" && pwd)
    name=$1
    directory=$2
    shift 2
    (
        # FreeBSD has no flock.
        if command -v flock >/dev/null && ! flock -n 9; then
            say "waiting for another process that installs $name"
            flock 9
        fi
        if ! is_installed "$directory" "$tools/$name"; then
            say "installing $name (once; about a minute)"
            start=$(date +%s)
            # A process that outlives its installation must not keep the lock.
            "$@" 9>&-
            say "installed $name: $(($(date +%s) - start)) s, $(du -sm "$tools/$name" | cut -f 1) MB"
        fi
    ) 9>"$tools/$name.lock"
}

# start_program DIRECTORY PROGRAM: prints the version of a program. Its home is temporary and in DIRECTORY: the user's stays
# untouched.
start_program() {
    scratch=$1/scratch
    mkdir "$scratch" "$scratch/home" "$scratch/tmp"
    (cd "$scratch" && env -i PATH="$PATH" HOME="$scratch/home" TMPDIR="$scratch/tmp" timeout 120 "$2" --version </dev/null >&2) ||
        die "cannot start $2 in $1; try again, and check that the registry has its package for this system"
    rm -rf "$scratch"
}

# install_from_npm NAME DIRECTORY PROGRAM: installs the packages locked in DIRECTORY into target/tools/NAME, unless they are
# installed, and starts PROGRAM. Packages' install scripts do not run, because many download or compile; the script `link` in
# DIRECTORY's package.json runs in their place.
install_from_npm() {
    install_tool "$1" "$2" npm_packages "$3"
}

npm_packages() {
    new=$tools/$name.new
    command -v npm >/dev/null || install_packages npm
    rm -rf "${tools:?}/$name" "$new"
    mkdir "$new"
    cp "$directory/package.json" "$directory/package-lock.json" "$new"
    # npm ci refuses locks without the optional packages of other systems, which not every registry has.
    npm install --prefix "$new" --no-save --ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel error >&2 ||
        die "cannot install $name: npm failed; check the network and npm's registry and proxy settings, and try again"
    npm run --prefix "$new" --if-present --silent link >&2 || die "cannot link the programs of $name in $new"
    # Prefer the installed node: the machine's may be too old.
    PATH=$new/node_modules/.bin:$PATH start_program "$new" "$1"
    mv "$new" "$tools/$name"
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
