#!/bin/sh
# Colibri at work, from nothing: builds it, starts a daemon of its own in a temporary directory, lets an
# agent mend a failing test in a sandbox, tries what the sandbox refuses, kills an agent that will not go.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

setup
build_and_use

place=$(mktemp -d /var/tmp/colibri-demo-XXXXXX)
export COLIBRI_SOCKET="$place/run/colibri.sock" COLIBRI_STATE_DIR="$place/state"
clean_up() {
    for id in ${agent:-} ${stubborn:-}; do
        colibri --no-autostart kill --grace 0s "$id" 2>/dev/null || true
    done
    colibri --no-autostart shutdown 2>/dev/null || true
    rm -rf "$place"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

show() {
    printf '\n$ %s\n' "$*"
    "$@"
}

say "an agent mends a failing test, in a sandbox without a network"
cp -r examples/demo/repo "$place/repository"
cp examples/demo/agent.sh "$place/agent.sh"
printf '\n$ colibri spawn --runtime pi --name mender --jail-path / --jail-ip4 disable -- sh agent.sh repository\n'
agent=$(colibri spawn --runtime pi --name mender --jail-path / --jail-ip4 disable -- sh "$place/agent.sh" "$place/repository")
echo "$agent"
# It waits for its prompt, so that its events can be watched from the first one on, live.
printf '\n$ colibri events --output mender &\n'
mkfifo "$place/live"
tee "$place/events" <"$place/live" &
printer=$!
colibri events --output mender >"$place/live" &
watcher=$!
show colibri send mender "make the tests pass"
wait "$watcher" "$printer"
show colibri wait mender
grep -q 'all tests pass' "$place/events" || die "the agent did not mend the test"
cmp -s examples/demo/repo/leap.sh "$place/repository/leap.sh" || die "the sandbox let the agent write outside"

say "what the sandbox refuses"
refused() {
    printf '\n$ colibri run --jail-path / --jail-ip4 disable -- bash -c %s\n' "'$1'"
    if colibri run --jail-path / --jail-ip4 disable -- bash -c "$1" </dev/null; then
        die "this was allowed"
    fi
}
refused "echo mine > $place/repository/leap.sh"
refused 'exec 3<>/dev/tcp/192.0.2.1/80'
refused "ls $COLIBRI_SOCKET"

say "an agent that ignores TERM"
printf '\n$ colibri spawn --name stubborn --jail-path / -- sh -c "trap \\"\\" TERM; sleep 1000; :"\n'
stubborn=$(colibri spawn --name stubborn --jail-path / -- sh -c 'trap "" TERM; sleep 1000; :')
echo "$stubborn"
show colibri kill --grace 1s stubborn
show colibri ps
say "done; cleaning up"
