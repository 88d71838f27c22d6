#!/bin/sh
# Records the README's picture, docs/picture.svg: colibri top in a real terminal (tmux). The agents are shell scripts that
# print events of pi and use the CPU. rich converts the terminal's cells to SVG.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

WIDTH=100
HEIGHT=15
RICH=15.0.0
TOOLS=$PWD/target/tools/picture
OUT=${1:-docs/picture.svg}

setup
install_packages tmux python3
if [ "$(cat "$TOOLS/version" 2>/dev/null)" != "$RICH" ]; then
    say "installing rich $RICH"
    python3 -m pip --version >/dev/null 2>&1 || install_packages python3-pip
    rm -rf "$TOOLS"
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$TOOLS" "rich==$RICH"
    echo "$RICH" >"$TOOLS/version"
fi
build_and_use

scratch=$(mktemp -d /var/tmp/colibri-picture-XXXXXX)
export COLIBRI_SOCKET="$scratch/run/colibri.sock" COLIBRI_STATE_DIR="$scratch/state" TMUX_TMPDIR="$scratch"
terminal() { tmux -u -L picture -f /dev/null "$@"; }
clean_up() {
    terminal kill-server 2>/dev/null || true
    for name in fix-leap-year review-docs upgrade-deps port-to-freebsd nightly-build; do
        colibri --no-autostart kill --grace 0s "$name" 2>/dev/null || true
    done
    colibri --no-autostart shutdown 2>/dev/null || true
    rm -rf "$scratch"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

cat >"$scratch/agent.sh" <<'AGENT'
# Prints the events of an agent of this kind and enters its current state.
say() { printf '%s\n' "$1"; }
said() { say "{\"type\":\"message_end\",\"message\":{\"role\":\"assistant\",\"stopReason\":\"toolUse\",\"usage\":{\"input\":$1,\"output\":$2,\"cost\":{\"total\":$3}}}}"; }
turns() { while [ "$1" -gt 0 ]; do say '{"type":"turn_end"}'; set -- $(($1 - 1)); done; }
tool() { say "{\"type\":\"tool_execution_start\",\"toolCallId\":\"1\",\"toolName\":\"$1\",\"args\":{}}"; }
work() { while [ "$1" -gt 0 ] || [ "$2" = forever ]; do set -- $(($1 - 1)) "$2"; done; }
say '{"type":"session","version":3,"id":"picture"}'
say '{"type":"agent_start"}'
case $1 in
fix) said 81200 6400 0.41; turns 7; tool bash; work 0 forever ;;
review) said 15400 2100 0.09; turns 3; say '{"type":"agent_end"}'; read -r line ;;
upgrade) said 42800 3900 0.22; turns 5; say '{"type":"extension_ui_request","id":"1","method":"confirm"}'; read -r line ;;
port) said 12900 800 0.05; turns 1; tool read; while :; do work 9000 -; sleep 0.1; done ;;
model) say '{"type":"message_end","message":{"role":"assistant","stopReason":"error","errorMessage":"529 overloaded: the model provider did not answer three times"}}'; exit 1 ;;
esac
AGENT
pi() { # NAME KIND OPTIONS…
    name=$1 kind=$2
    shift 2
    colibri spawn --runtime pi --name "$name" --cwd "$scratch" --mount "$scratch:ro" "$@" -- sh agent.sh "$kind" >/dev/null
}
say "starting agents"
pi fix-leap-year fix
pi review-docs review
pi upgrade-deps upgrade
pi port-to-freebsd port
pi ask-model model
colibri spawn --name nightly-build -- sh -c 'while :; do echo "compiled something"; sleep 1; done' >/dev/null
colibri spawn --name backup -- true >/dev/null

say "recording"
terminal new-session -d -s top -x "$WIDTH" -y "$HEIGHT" "colibri top"
terminal set-option -g window-size manual
terminal resize-window -x "$WIDTH" -y "$HEIGHT"
screen() { terminal capture-pane -p -t top "$@"; }
until_seen() {
    tries=0
    until screen | grep -q "$1"; do
        tries=$((tries + 1))
        [ "$tries" -lt 200 ] || die "the screen does not show $1: $(screen)"
        sleep 0.1
    done
}
until_seen '^7 agents  1 blocked  1 error  3 working  1 idle  1 done'
terminal send-keys -t top Down Down
until_seen '^upgrade-deps  [a-z0-9]* '
# The CPU share appears after two samples.
until_seen 'fix-leap-year.*[0-9]%'
until_seen 'port-to-freebsd.*[0-9]%'
# -N keeps trailing spaces: a selected row is highlighted to its end.
screen -e -N >"$scratch/screen"
PYTHONPATH=$TOOLS python3 scripts/picture.py "$WIDTH" "colibri top" <"$scratch/screen" >"$scratch/picture.svg"
mv "$scratch/picture.svg" "$OUT"
say "recorded into $OUT"
