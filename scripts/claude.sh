#!/bin/sh
# Installs claude for the tests into target/tools/claude, unless it is installed.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

install_from_npm claude tests/claude claude
