#!/bin/sh
# A scripted agent: copies a repository, runs its tests, fixes the failure, runs the tests again and prints the
# difference. Writes events in pi's format to stdout, one JSON object per line, and the output of its tools to stderr.
set -u
repository=$1

event() { printf '%s\n' "$1"; }

tool() {
    event "{\"type\":\"tool_execution_start\",\"toolName\":\"$1\"}"
    shift
    "$@" >&2
    status=$?
    event "{\"type\":\"tool_execution_end\",\"isError\":$([ $status = 0 ] && echo false || echo true)}"
    return $status
}

event '{"type":"session","version":3,"id":"demo"}'
read -r prompt
event '{"type":"agent_start"}'
event '{"type":"turn_start"}'
echo "prompt: $prompt" >&2
tool copy cp -r "$repository" /tmp/work || exit 1
cd /tmp/work || exit 1
if ! tool test sh test.sh; then
    # shellcheck disable=SC2016 # the script's text
    tool edit sed -i 's/\[ $(($1 % 4)) -eq 0 \]/[ $(($1 % 4)) -eq 0 ] \&\& { [ $(($1 % 100)) -ne 0 ] || [ $(($1 % 400)) -eq 0 ]; }/' leap.sh
    tool test sh test.sh
    result=$?
fi
tool diff diff -u "$repository/leap.sh" leap.sh
event '{"type":"turn_end"}'
event '{"type":"agent_end"}'
exit "${result:-0}"
