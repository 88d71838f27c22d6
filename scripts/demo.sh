#!/bin/sh
# Demonstrates Colibri: builds it, lets a real agent fix a failing test of a small repository in a sandbox, tries forbidden
# operations, and kills an agent that ignores TERM. AGENT selects pi (the default), claude, codex, gemini, opencode, qwen or
# copilot. A scripted model on this machine tells the agent what to do, so the demo needs no account.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

name=${AGENT:-pi}
setup
command -v git >/dev/null || install_packages git
scripts/agents.sh "$name"
build_and_use

demo=$(mktemp -d /var/tmp/colibri-demo-XXXXXX)
export COLIBRI_SOCKET="$demo/run/colibri.sock" COLIBRI_STATE_DIR="$demo/state"
tools=${CARGO_TARGET_DIR:-$PWD/target}/tools
PATH=$PATH:$tools/$name/node_modules/.bin:$tools/$name/bin
clean_up() {
    for id in ${stubborn:-}; do
        colibri --no-autostart kill --grace 0s "$id" 2>/dev/null || true
    done
    colibri --no-autostart shutdown 2>/dev/null || true
    # The model ends with its standard input.
    exec 4>&- 2>/dev/null || true
    rm -rf "$demo"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

show() {
    printf '\n$ %s\n' "$*"
    "$@"
}

# The model asks the agent to run these commands, and then says that it is done.
mkfifo "$demo/model-input"
# shellcheck disable=SC2016 # the text of a script
scripted-model 'sh test.sh' \
    'sed -i '"'"'s/\[ $(($1 % 4)) -eq 0 \]/[ $(($1 % 4)) -eq 0 ] \&\& { [ $(($1 % 100)) -ne 0 ] || [ $(($1 % 400)) -eq 0 ]; }/'"'"' leap.sh' \
    'sh test.sh' <"$demo/model-input" >"$demo/model-url" &
exec 4>"$demo/model-input"
# shellcheck disable=SC2016 # $1 is of the inner shell
timeout 20 sh -c 'until [ -s "$1/model-url" ]; do sleep 0.1; done' sh "$demo" || die "the scripted model did not start"
url=$(cat "$demo/model-url")

# What the agent needs to use this model, as the settings and the key of a user.
user=$demo/user
mkdir -p "$user/.pi/agent" "$user/.config/opencode" "$user/.local/share/opencode"
provider=$(printf '"baseUrl":"%s/v1","api":"openai-completions","models":[{"id":"m","cost":{"input":1,"output":5,"cacheRead":0,"cacheWrite":0}}]' "$url")
printf '{"providers":{"scripted":{%s}}}' "$provider" >"$user/.pi/agent/models.json"
printf '{"scripted":{"type":"api_key","key":"sk-demo-0123456789"}}' >"$user/.pi/agent/auth.json"
printf '{"provider":{"scripted":{"npm":"@ai-sdk/openai-compatible","options":{"baseURL":"%s/v1"},"models":{"scripted":{}}}},"model":"scripted/scripted","small_model":"scripted/scripted"}' \
    "$url" >"$user/.config/opencode/opencode.json"
printf '{"scripted":{"type":"api","key":"sk-demo-0123456789"}}' >"$user/.local/share/opencode/auth.json"
key=sk-demo-0123456789abcdef
case $name in
pi) set -- --allow "${url#http://}" -- --provider scripted --model m ;;
opencode) set -- --allow "${url#http://}" -- ;;
claude) export ANTHROPIC_API_KEY=$key ANTHROPIC_BASE_URL="$url" && set -- -- ;;
codex) export OPENAI_API_KEY=$key OPENAI_BASE_URL="$url/v1" && set -- -- -c model=scripted ;;
gemini) export GEMINI_API_KEY=$key GOOGLE_GEMINI_BASE_URL="$url" && set -- -- ;;
qwen) export OPENAI_API_KEY=$key OPENAI_BASE_URL="$url/v1" OPENAI_MODEL=scripted && set -- -- ;;
copilot) export COPILOT_PROVIDER_API_KEY=$key COPILOT_PROVIDER_BASE_URL="$url/v1" COPILOT_MODEL=gpt-5 COPILOT_OFFLINE=true && set -- -- ;;
*) die "no scripted settings for $name; set AGENT to pi, claude, codex, gemini, opencode, qwen or copilot" ;;
esac
HOME=$user
export HOME

say "$name fixes a failing test in a sandbox"
cp -r examples/demo/repo "$demo/repository"
cd "$demo/repository"
git init -q .
git add .
git -c user.name=demo -c user.email=demo@localhost commit -q -m "Add leap years"
! sh test.sh || die "the test did not fail before"
printf '\n$ colibri run --agent %s "Make the tests pass."\n' "$name"
colibri run --agent "$name" --workspace "$PWD" "Make the tests pass." "$@"
show sh test.sh
show git --no-pager diff --stat
colibri --no-autostart ps

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
