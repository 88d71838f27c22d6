#!/bin/sh
# Installs pi for the tests, with a suitable node, into target/tools/pi, unless it is installed.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

install_from_npm pi tests/pi pi
