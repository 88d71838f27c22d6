#!/bin/sh
# Installs the real pi that tests run, and a node that is new enough for it, into target/tools/pi. Once: what is
# there already stays.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

install_from_npm pi tests/pi pi
