#!/bin/sh
# Demonstrates Colibri: builds it, starts a daemon in a temporary directory, lets an agent fix a failing test in a
# sandbox, tries forbidden operations, and kills an agent that ignores TERM.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

setup
build_and_use

demo=$(mktemp -d /var/tmp/colibri-demo-XXXXXX)
export COLIBRI_SOCKET="$demo/run/colibri.sock" COLIBRI_STATE_DIR="$demo/state"
clean_up() {
    for id in ${agent:-} ${stubborn:-}; do
        colibri --no-autostart kill --grace 0s "$id" 2>/dev/null || true
    done
    colibri --no-autostart shutdown 2>/dev/null || true
    rm -rf "$demo"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

show() {
    printf '\n$ %s\n' "$*"
    "$@"
}

say "an agent fixes a failing test in a sandbox without a network"
cp -r examples/demo/repo "$demo/repository"
cp examples/demo/agent.sh "$demo/agent.sh"
printf '\n$ colibri spawn --runtime pi --name fixer --mount .:ro -- sh agent.sh repository\n'
agent=$(colibri spawn --runtime pi --name fixer --mount "$demo:ro" -- sh "$demo/agent.sh" "$demo/repository")
echo "$agent"
# The agent waits for its prompt, so the watcher sees every event.
printf '\n$ colibri events --output fixer &\n'
mkfifo "$demo/live"
tee "$demo/events" <"$demo/live" &
printer=$!
colibri events --output fixer >"$demo/live" &
watcher=$!
show colibri send fixer "make the tests pass"
wait "$watcher" "$printer"
show colibri wait fixer
grep -q 'all tests pass' "$demo/events" || die "the agent did not fix the test"
cmp -s examples/demo/repo/leap.sh "$demo/repository/leap.sh" || die "the sandbox let the agent write outside"

say "operations that the sandbox refuses"
refused() {
    printf '\n$ colibri run --mount .:ro -- bash -c %s\n' "'$1'"
    if colibri run --mount "$demo:ro" -- bash -c "$1" </dev/null; then
        die "the sandbox allowed this"
    fi
}
refused "echo mine > $demo/repository/leap.sh"
refused 'exec 3<>/dev/tcp/192.0.2.1/80'
refused "ls $COLIBRI_SOCKET"

say "an agent that ignores TERM"
printf '\n$ colibri spawn --name stubborn -- sh -c "trap \\"\\" TERM; echo ready; sleep 1000; :"\n'
stubborn=$(colibri spawn --name stubborn -- sh -c 'trap "" TERM; echo ready; sleep 1000; :')
echo "$stubborn"
timeout 20 sh -c 'until colibri logs stubborn | grep -q ready; do sleep 0.1; done' || die "the agent did not start"
show colibri kill --grace 1s stubborn
show colibri ps
say "done; cleaning up"
