#!/bin/sh
# Installs coding agents for the tests into target/tools/NAME, unless they are installed. All take about 3.2 GB.
#
# usage: scripts/agents.sh [NAME…]
# NAME is a directory of tests/agents, which pins the version; the default is all of them.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

# Prints a Python that aider supports and that can create virtual environments.
find_python() {
    for candidate in python3 python3.12 python3.11 python3.10; do
        if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
}

# Installs aider from PyPI. It is installed in place: a virtual environment contains its path.
aider_packages() {
    python=$(find_python)
    if [ -z "$python" ]; then
        install_packages python3 python3-venv
        python=$(find_python)
    fi
    [ -n "$python" ] || die "aider needs Python 3.10 to 3.12; install one with venv, for example as python3.12 in PATH"
    rm -rf "${tools:?}/aider"
    "$python" -m venv "$tools/aider"
    "$tools/aider/bin/python3" -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary :all: \
        -r "$directory/requirements.txt" >&2 ||
        die "cannot install aider: pip failed; check the network and pip's index and proxy settings, and try again"
    start_program "$tools/aider" "$tools/aider/bin/aider"
    # The installation is complete.
    cp "$directory/requirements.txt" "$tools/aider"
}

[ $# -gt 0 ] || set -- pi claude codex gemini qwen opencode copilot cline aider
for agent in "$@"; do
    [ -d "tests/agents/$agent" ] || die "no agent \"$agent\" in tests/agents; see: ls tests/agents"
done
for agent in "$@"; do
    case $agent in
    aider) install_tool aider tests/agents/aider aider_packages ;;
    *) install_from_npm "$agent" "tests/agents/$agent" "$agent" ;;
    esac
done
