#!/bin/sh
# Installs codex for the tests into target/tools/codex, unless it is installed.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

install_from_npm codex tests/codex codex
