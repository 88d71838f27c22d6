#!/bin/sh
# Acceptance test on a FreeBSD 15 host: verifies, as root, that jexec(8), jail(8), mdo(1), the setuid helper and the rc.d
# script work with Colibri's programs as docs/ describes.
#
# usage: tests/freebsd/acceptance.sh [--attacks] [--torture COUNT] DIRECTORY
#
# --attacks also runs the attempts of tests/freebsd/attacks.sh against the helper, as an ordinary user. --torture also kills
# COUNT random shims, daemons and monitors, and checks that nothing of their agents is left. DIRECTORY contains colibri,
# colibri-daemon, colibri-shim, colibri-proxy and colibri-jail-helper, and for --attacks the program attack of the package
# colibri-tests, all built for this host. Prints TAP. Creates users, jails, mac_do(4) rules, a policy and an rc.conf.d file, and removes them, even if
# interrupted.
# Exit status: 0 all checks passed, 1 a check or the set-up failed, 2 this host is unsuitable.
#
# shellcheck disable=SC2016 # shells in jails expand these strings
set -u

PLAN=181

cannot() {
    printf 'acceptance.sh: %s\n' "$*" >&2
    exit 2
}

usage="usage: tests/freebsd/acceptance.sh [--attacks] [--torture COUNT] DIRECTORY, which contains the programs"
attacks='' torture=''
while [ $# -gt 1 ]; do
    case $1 in
        --attacks) attacks=yes ;;
        --torture)
            shift && torture=$1
            [ "$torture" -gt 0 ] 2>/dev/null || cannot "$usage"
            ;;
        *) cannot "$usage" ;;
    esac
    shift
done
[ $# = 1 ] || cannot "$usage"
[ "$(uname -s)" = FreeBSD ] || cannot "this is $(uname -s); it runs on FreeBSD 15, which has jail(8), jexec(8), mdo(1) and mac_do(4)"
case $(uname -r) in
    15.*) ;;
    *) cannot "this is FreeBSD $(uname -r); it runs on FreeBSD 15" ;;
esac
[ "$(id -u)" = 0 ] || cannot "root is required to create users and jails"
for program in colibri colibri-daemon colibri-shim colibri-proxy colibri-jail-helper; do
    [ -x "$1/$program" ] || cannot "$1/$program is missing; build it for this host and pass its directory"
done
built=$(cd "$1" && pwd)
here=$(cd "$(dirname "$0")/../.." && pwd)
[ -z "$attacks" ] || PLAN=$((PLAN + $(cat "$here/tests/freebsd/attacks.sh" "$here/tests/freebsd/mount-attacks.sh" | grep -c "^attack '")))

OP=cbrtop AG=cbrtag         # the daemon's user, and the agents'
OT=cbrtot AO=cbrtao         # another caller of the helper, and its agents' user, in attacks.sh
CLOSED=cbrtclosed           # a jail that no caller may enter, in attacks.sh
JAIL=cbrtjail               # a persistent jail
ROOTS=/var/run/colibri-roots # the roots that are made from templates
POLICY=/usr/local/etc/colibri/helper.toml
RCCONF=/etc/rc.conf.d/colibri
port=$((20000 + $$ % 10000)) # TCP port of a server on the host
mark=$((70000 + $$ % 10000)) # part of the argument of each sleep, which identifies the processes of this run

for file in "$POLICY" "$RCCONF" /usr/local/etc/colibri/colibri.toml; do
    [ ! -e "$file" ] || cannot "$file exists; use a host without a Colibri installation"
done
for user in "$OP" "$AG" "$OT" "$AO"; do
    ! id "$user" >/dev/null 2>&1 || cannot "user $user exists from an earlier run; remove it: pw userdel $user"
done
! jls -j "$JAIL" >/dev/null 2>&1 || cannot "jail $JAIL exists from an earlier run; remove it: jail -R $JAIL"
[ ! -e /var/run/colibri.pid ] || cannot "/var/run/colibri.pid exists; stop the Colibri service"

# ---- set-up ----------------------------------------------------------------------------------------------

[ -z "$torture" ] || PLAN=$((PLAN + 9))

number=0 failed=0 daemon='' servers='' loaded='' mounted='' rules='' made_etc='' work=''

# The work directory is outside /tmp and /var/tmp, which on ZFS usually ignore setuid bits.
clean_up() {
    status=$?
    trap '' INT TERM HUP
    set +e
    [ ! -e "$RCCONF" ] || sh "$here/packaging/freebsd/rc.d/colibri" onestop >/dev/null 2>&1
    [ -z "$daemon" ] || kill -KILL "$daemon" 2>/dev/null
    # shellcheck disable=SC2086 # several pids
    [ -z "$servers" ] || kill -KILL $servers 2>/dev/null
    pkill -KILL -f "nc -l 127.0.0.1 $port" 2>/dev/null
    for jail in $(jls name 2>/dev/null | grep '^colibri-'); do
        [ -z "$work" ] || [ "$(jls -j "$jail" path)" != "$work/root" ] || jail -R "$jail"
    done
    for jail in $(jls name 2>/dev/null | grep '^colibri-'); do
        [ -z "$work" ] || [ "$(jls -j "$jail" path)" != "$ROOTS/$jail" ] || jail -R "$jail"
    done
    jail -R "$JAIL" 2>/dev/null
    jail -R "$CLOSED" 2>/dev/null
    pkill -KILL -U "$OP" 2>/dev/null
    pkill -KILL -U "$AG" 2>/dev/null
    pkill -KILL -U "$OT" 2>/dev/null
    pkill -KILL -U "$AO" 2>/dev/null
    pkill -KILL -f "sleep $mark" 2>/dev/null
    rm -f "$POLICY" "$RCCONF"
    [ -z "$made_etc" ] || rmdir "${POLICY%/*}" 2>/dev/null
    [ -z "$rules" ] || sysctl -q security.mac.do.rules="${rules#was:}" >/dev/null
    [ -z "$loaded" ] || kldunload mac_do
    [ -z "$work" ] || umount "$work/root/work" 2>/dev/null
    [ -z "$work" ] || umount "$work/existing/dev" 2>/dev/null
    for mount in $(mount -p | tr '\t' ' ' | sed -n "s|^[^ ]* *\($ROOTS/[^ ]*\) .*|\1|p" | sort -r); do
        umount -f "$mount"
    done
    rmdir "$ROOTS"/* "$ROOTS" 2>/dev/null
    if [ -n "$mounted" ]; then
        tries=0
        until umount "$work/root/dev" 2>/dev/null || [ $tries = 10 ]; do
            tries=$((tries + 1))
            sleep 1
        done
    fi
    for user in "$OP" "$AG" "$OT" "$AO"; do
        pw userdel "$user" 2>/dev/null
    done
    # Delete nothing through a remaining mount.
    [ -z "$work" ] || mount -p | grep -q "$work" || rm -rf "$work"
    exit "$status"
}

bail() {
    printf 'Bail out! %s\n' "$*"
    exit 1
}

trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

mkdir -p /usr/local
work=$(mktemp -d /usr/local/colibri-acceptance.XXXXXX) || bail "cannot create a directory in /usr/local"
chmod 755 "$work"
out=$work/out err=$work/err
: >"$out"
: >"$err"

mkdir "$work/bin" "$work/root" || bail "cannot create a directory in $work"
for program in colibri colibri-daemon colibri-shim colibri-proxy; do
    install -m 755 "$built/$program" "$work/bin/" || bail "cannot copy $program"
done
install -o root -g wheel -m 4755 "$built/colibri-jail-helper" "$work/bin/" || bail "cannot copy the helper"
install -m 755 "$built/colibri-jail-helper" "$work/bin/helper-plain" || bail "cannot copy the helper"

pw useradd "$OP" -d "$work" -s /bin/sh -w no -c 'Colibri acceptance' || bail "cannot create user $OP"
pw useradd "$AG" -d / -s /bin/sh -w no -c 'Colibri acceptance' || bail "cannot create user $AG"
op_uid=$(id -u "$OP") ag_uid=$(id -u "$AG")
for directory in state-mdo state-helper state-rc run-mdo run-helper run-rc; do
    install -d -o "$OP" -m 700 "$work/$directory" || bail "cannot create $work/$directory"
done

# The root contains static programs, and with their libraries daemon(8), which starts a new session, nc(1) and ifconfig(8).
root=$work/root
mkdir "$root/bin" "$root/dev" "$root/etc" "$root/lib" "$root/libexec" "$root/usr" "$root/usr/lib"
install -d -m 1777 "$root/tmp"
cp /rescue/sh "$root/bin/sh" || bail "cannot copy /rescue/sh"
for program in cat echo id kill ln ls mkdir mv ps pwd sleep; do
    [ -x "/rescue/$program" ] || bail "/rescue/$program is missing"
    ln "$root/bin/sh" "$root/bin/$program"
done
cp /libexec/ld-elf.so.1 "$root/libexec/" || bail "cannot copy the linker of daemon(8)"
for program in /usr/sbin/daemon /sbin/ifconfig /usr/bin/nc; do
    # Without nc(1) the checks of the network are skipped.
    [ -x "$program" ] || continue
    cp "$program" "$root/bin/" || bail "cannot copy $program"
    for library in $(ldd -f '%p\n' "$program" 2>/dev/null | grep '^/'); do
        [ -e "$root/lib/${library##*/}" ] || cp "$library" "$root/lib/" || bail "cannot copy $library"
    done
done
{
    echo 'root:*:0:0::0:0:root:/:/bin/sh'
    echo "$AG:*:$ag_uid:$ag_uid::0:0:agent:/tmp:/bin/sh"
} >"$root/etc/master.passwd"
chmod 600 "$root/etc/master.passwd"
pwd_mkdb -p -d "$root/etc" "$root/etc/master.passwd" || bail "cannot create the user table of the jail"
mount -t devfs devfs "$root/dev" || bail "cannot mount devfs in the jail"
mounted=yes
devfs -m "$root/dev" ruleset 4 || bail "cannot set the device rules of the jail"
devfs -m "$root/dev" rule applyset || bail "cannot set the device rules of the jail"
jail -q -c name="$JAIL" path="$root" host.hostname="$JAIL" ip4=inherit persist || bail "cannot create jail $JAIL"

if ! kldstat -q -m mac_do; then
    kldload mac_do || bail "cannot load mac_do(4)"
    loaded=yes
fi
rules=was:$(sysctl -n security.mac.do.rules)
before=${rules#was:}
sysctl -q security.mac.do.rules="${before:+$before;}uid=$op_uid>uid=0" >/dev/null || bail "cannot set a mac_do(4) rule"

[ -d "${POLICY%/*}" ] || made_etc=yes
mkdir -p "${POLICY%/*}"
cat >"$POLICY" <<POLICY_TEXT || bail "cannot write the policy"
syslog = "best-effort"

[[rule]]
callers = ["$OP"]
jails = ["colibri-*", "$JAIL"]
roots = ["$root"]
users = ["$AG"]
programs = ["*"]
ip4 = ["inherit", "disable"]
environment = ["PATH", "LANG", "COLIBRI_AGENT_ID", "GIVEN", "HTTP_PROXY"]
signals = ["TERM", "INT", "HUP", "KILL"]

[rule.limits]
open_files = 512
POLICY_TEXT
chmod 644 "$POLICY"

# ---- tools -----------------------------------------------------------------------------------------------

# check DESCRIPTION COMMAND [ARG…]: one TAP line.
check() {
    number=$((number + 1))
    description=$1 directive=''
    shift
    : >"$out"
    : >"$err"
    code=none
    if "$@"; then
        echo "ok $number - $description$directive"
    else
        failed=$((failed + 1))
        echo "not ok $number - $description"
        echo "#   $*"
        echo "#   exit code: $code"
        sed 's/^/#   stdout: /' "$out" | head -n 20
        sed 's/^/#   stderr: /' "$err" | head -n 20
    fi
}

# Runs a command. Stores its output in $out and $err, its exit code in $code.
run() {
    "$@" >"$out" 2>"$err" </dev/null
    code=$?
}

# Runs a command as a user with only the given environment. The command is not a process group leader, so it can leave the
# session and its terminal, which the helper would refuse.
as() {
    who=$1
    shift
    su "$who" -c '"$@"; exit $?' sh env -i PATH=/usr/bin:/bin:/usr/sbin:/sbin HOME=/ "$@"
}

# Runs colibri as the daemon's user, with the daemon of this mode.
colibri() {
    as "$OP" COLIBRI_SOCKET="$work/run-$mode/colibri.sock" COLIBRI_STATE_DIR="$work/state-$mode" \
        COLIBRI_JAIL_PRIV_MODE="$privilege" COLIBRI_JAIL_HELPER="$work/bin/colibri-jail-helper" \
        LANG=C.UTF-8 "$work/bin/colibri" --no-autostart "$@"
}

helper() { as "$OP" GIVEN=yes OTHER=no LD_PRELOAD=/no LANG=C.UTF-8 "$work/bin/colibri-jail-helper" "$@"; }

start_daemon() {
    as "$OP" COLIBRI_JAIL_PRIV_MODE="$privilege" COLIBRI_JAIL_HELPER="$work/bin/colibri-jail-helper" LANG=C.UTF-8 \
        "$work/bin/colibri-daemon" --socket "$work/run-$mode/colibri.sock" --state-dir "$work/state-$mode" \
        >>"$work/daemon-$mode.log" 2>&1 </dev/null &
    eventually daemon_up
}

# The oldest process is the daemon; a child has the same arguments until its execve(2).
daemon_up() {
    daemon=$(pgrep -o -f "^$work/bin/colibri-daemon --socket $work/run-$mode/") && answers
}

answers() { colibri ps >/dev/null 2>&1; }

# Retries a command for up to 20 s.
eventually() {
    left=20
    until "$@"; do
        left=$((left - 1))
        [ $left -gt 0 ] || return 1
        sleep 1
    done
}

stdout_has() { grep -q -- "$1" "$out"; }
stderr_has() { grep -q -- "$1" "$err"; }
exits() { [ "$code" = "$1" ]; }
# Matches sleep itself, not a shell whose script contains the argument, and no zombie: it has ended.
# shellcheck disable=SC2009 # pgrep(1) cannot exclude zombies
runs() { ps -axww -o state= -o args= | grep -v '^Z' | grep -Eq "^[^ ]+ +(/bin/)?sleep $1\$"; }
gone() { ! runs "$1"; }
jail_there() { jls -j "$1" >/dev/null 2>&1; }
jail_gone() { ! jls -j "$1" >/dev/null 2>&1; }

# Starts an agent in the background and stores its id in $id.
spawn() {
    id=$(colibri spawn "$@" 2>"$err" </dev/null) && [ -n "$id" ]
}

in_state() { colibri ps --json 2>/dev/null | tr '{' '\n' | grep "\"$id\"" | grep -q "\"state\":\"$1\""; }

echo "1..$PLAN"

# ---- FreeBSD's programs -----------------------------------------------------------------------------------

jexec_code() { run jexec "$JAIL" /bin/sh -c 'exit 42'; exits 42; }
jexec_env() { run env GIVEN=yes jexec "$JAIL" /bin/sh -c 'echo "$GIVEN"'; stdout_has '^yes$'; }
jexec_user() { run jexec -U "$AG" "$JAIL" /bin/sh -c 'echo "$(id -u) $USER $HOME"'; stdout_has "^$ag_uid $AG /tmp\$"; }
jexec_words() { run jexec "$JAIL" /bin/echo -l -U 'a  b' --; stdout_has '^-l -U a  b --$'; }
jexec_no_jail() { run jexec cbrtnone /bin/sh; exits 1 && [ -s "$err" ]; }
jexec_no_user() { run jexec -U cbrtnone "$JAIL" /bin/sh; exits 1 && [ -s "$err" ]; }
jexec_directory() { run jexec -d /tmp "$JAIL" /bin/pwd; stdout_has '^/tmp$'; }

check 'jexec: the exit code is the program'"'"'s' jexec_code
check 'jexec: without -l the environment is kept' jexec_env
check 'jexec: -U takes the user from the jail and sets USER and HOME' jexec_user
check 'jexec: arguments after the jail belong to the program' jexec_words
check 'jexec: -d is the working directory' jexec_directory
check 'jexec: no such jail is exit code 1 and a message' jexec_no_jail
check 'jexec: no such user is exit code 1 and a message' jexec_no_user

new_jail() {
    first=$1
    shift
    jail -q -c name=colibri-cbrt path="$root" ip4=inherit command="$first" "$@"
}
jail_words() { run new_jail /bin/echo 'a  b' -c name=x command=y; [ "$(cat "$out")" = 'a  b -c name=x command=y' ]; }
jail_code() { run new_jail /bin/sh -c 'exit 42'; exits 1 && stderr_has failed; }
jail_signal() { run new_jail /bin/sh -c 'kill -9 $$'; exits 1 && stderr_has 'signal 9'; }
jail_zero() { run new_jail /bin/sh -c 'exit 0'; exits 0; }
jail_stdin() { echo in | new_jail /bin/cat >"$out" 2>"$err"; stdout_has '^in$'; }
jail_env() { run env GIVEN=yes jail -q -c name=colibri-cbrt path="$root" command=/bin/sh -c 'echo "$GIVEN"'; stdout_has '^yes$'; }
jail_user() { run jail -q -c name=colibri-cbrt path="$root" exec.jail_user="$AG" command=/bin/id -u; stdout_has "^$ag_uid\$"; }
jail_file() { run jail -f "$here/packaging/freebsd/jail.conf.d/agents.conf" -e ' '; exits 0 && stdout_has agents; }

check 'jail: -q prints nothing, and arguments after command= belong to the program' jail_words
check 'jail: the program'"'"'s exit code 42 collapses to 1, with a message that contains failed' jail_code
check 'jail: death by signal 9 collapses to 1, with a message that names it' jail_signal
check 'jail: exit code 0 is 0' jail_zero
check 'jail: the program reads standard input' jail_stdin
check 'jail: the environment is kept' jail_env
check 'jail: exec.jail_user is looked up in the jail' jail_user
check 'jail: an ephemeral jail ends with its last process' jail_gone colibri-cbrt
check 'jail: the sample jail.conf is valid' jail_file

mdo_root() { run as "$OP" mdo -i -- /usr/bin/id -u; stdout_has '^0$'; }
mdo_groups() { run as "$OP" mdo -i -- /usr/bin/id -Gn; stdout_has "^$OP\$"; }
mdo_other() { run as "$AG" mdo -i -- /usr/bin/id -u; ! exits 0 && ! stdout_has '^0$'; }
mdo_code() { run as "$OP" GIVEN=yes mdo -i -- /bin/sh -c 'echo "$GIVEN"; exit 42'; exits 42 && stdout_has '^yes$'; }

check 'mdo: -i with the rule uid=N>uid=0 is root' mdo_root
check 'mdo: -i keeps the groups' mdo_groups
check 'mdo: a user without a rule is refused' mdo_other
check 'mdo: environment and exit code are kept' mdo_code

# ---- Colibri with mdo, then the same with the helper -------------------------------------------------------

daemon_modes() { [ "$(stat -f %Lp "$work/run-$mode/colibri.sock")" = 600 ] && [ "$(stat -f %Lp "$work/run-$mode")" = 700 ]; }
doctor() { run colibri doctor; exits 0; }
plain_code() { run colibri run --no-jail -- sh -c 'echo hi; exit 7'; exits 7 && stdout_has '^hi$'; }

# The following run in each kind of confinement, with the options of in_jail.
in_jail() {
    case $kind in
        persistent) set -- --jail-name "$JAIL" --jail-user "$AG" "$@" ;;
        ephemeral) set -- --jail-path "$root" --jail-user "$AG" "$@" ;;
        filtered) set -- --jail-path "$root" --jail-user "$AG" --allow "127.0.0.1:$port" "$@" ;;
        template) set -- --jail-template "$template" --jail-user "$AG" --jail-fdescfs "$@" ;;
        none) set -- --no-jail "$@" ;;
    esac
    "$verb" "$@"
}
run_agent() { run colibri run "$@"; }
agent() { verb=run_agent; in_jail "$@"; }
start_agent() { verb=spawn; in_jail "$@"; }
tag=0
# Chooses the argument of the sleeps of the next agent.
next_tag() { tag=$((tag + 1)) sleeps=$mark$tag; }
# A script that ignores TERM, with a double-forked process in a new session.
stubborn() { echo "daemon -f sleep $sleeps; trap '' TERM; while :; do sleep 1; done"; }

code() { agent -- /bin/sh -c 'exit 42'; exits 42; }
signalled() { agent -- /bin/sh -c 'kill -9 $$'; exits 137; }
stdin() { echo in | colibri_in_jail run -- /bin/cat >"$out" 2>"$err"; [ "$(cat "$out")" = in ]; }
colibri_in_jail() { command=$1; shift; verb=command_agent; in_jail "$@"; }
command_agent() { colibri "$command" "$@"; }
user() { agent -- /bin/id -u; stdout_has "^$ag_uid\$"; }
arguments() { agent -- /bin/echo '' 'a  b' '$(x)' "q'q" 'c=d' --; [ "$(cat "$out")" = " a  b \$(x) q'q c=d --" ]; }
logged() { colibri logs "$id" 2>"$err" | tee "$out" | grep -q "$1"; }
environment() {
    start_agent --env GIVEN="secret$mark" -- /bin/sh -c 'echo "$GIVEN"; sleep 15' &&
        eventually logged "secret$mark" && ps -axww -o command >"$work/ps" &&
        ! grep "secret$mark" "$work/ps" "$work/state-$mode/agents/$id"/*.json "$work/state-$mode/audit.jsonl" &&
        run colibri kill --grace 0s "$id"
    exits 0
}
# INT to `colibri run` reaches the agent, which handles it.
interrupted() {
    next_tag
    colibri_in_jail run -- /bin/sh -c "trap 'echo got; exit 9' INT; echo ready; while :; do sleep 1; done; : $sleeps" \
        >"$out" 2>"$err" </dev/null &
    job=$!
    eventually stdout_has ready && pkill -INT -f "^$work/bin/colibri --no-autostart run .*: $sleeps"
    wait "$job"
    code=$?
    exits 9 && stdout_has got
}
ended_by_kill() { run colibri kill "$@" "$id"; exits 0 && nothing_left; }
# No process, jail, root, mount, limit or proxy of the agent is left.
nothing_left() {
    gone "$sleeps" && jail_gone "colibri-$id" && unmounted && root_gone && ! limit_left && ! proxy_left
}
proxy_left() { pgrep -U "$OP" -f 'colibri-proxy serve' >/dev/null; }
root_gone() { [ ! -e "$ROOTS/colibri-$id" ] && ! mount -p | grep -q "$ROOTS/colibri-$id"; }
limit_left() { rctl "jail:colibri-$id" 2>/dev/null | grep -q .; }
unmounted() { ! mount -p | grep -q "$root/work"; }
# All processes get TERM and the time to handle it.
terminated() {
    next_tag
    start_agent -- /bin/sh -c "(trap 'echo child; exit' TERM; echo up; while :; do sleep 1; done) &
        trap 'echo parent; wait; exit 3' TERM; echo up; while :; do sleep 1; done" &&
        eventually logged up && sleep 1 && ended_by_kill --grace 10s && logged parent && logged child
}
killed() { next_tag; start_agent -- /bin/sh -c "$(stubborn)" && eventually runs "$sleeps" && ended_by_kill --grace 1s; }
has_reason() { colibri ps --json 2>/dev/null | tr '{' '\n' | grep -A 3 "\"$id\"" | grep -q "$1"; }
wall_time() {
    next_tag
    start_agent --wall-time 8s -- /bin/sh -c "$(stubborn)" && eventually runs "$sleeps" && eventually in_state error &&
        nothing_left && colibri status "$id" | grep -q 'wall-clock limit'
}
wall_time_alone() {
    next_tag
    start_agent --wall-time 8s -- /bin/sh -c "$(stubborn)" && eventually runs "$sleeps" && kill -KILL "$daemon" &&
        eventually gone "$sleeps" && eventually shim_gone && nothing_left && start_daemon && colibri status "$id" | grep -q 'wall-clock limit'
}
shim_gone() { ! pgrep -f "colibri-shim .*$id" >/dev/null; }
shim_terminated() {
    next_tag
    start_agent -- /bin/sh -c "$(stubborn)" && eventually runs "$sleeps" && kill -KILL "$daemon" &&
        pkill -TERM -f "colibri-shim .*$id" && eventually gone "$sleeps" && eventually shim_gone && nothing_left && start_daemon
}
shim_killed() {
    next_tag
    start_agent -- /bin/sh -c "$(stubborn)" && eventually runs "$sleeps" && pkill -KILL -f "colibri-shim .*$id" &&
        eventually in_state error && eventually nothing_left && ! still_running
}
still_running() { colibri status "$id" | grep -q 'still running'; }
both_killed() {
    next_tag
    start_agent -- /bin/sh -c "$(stubborn)" && eventually runs "$sleeps" && kill -KILL "$daemon" &&
        pkill -KILL -f "colibri-shim .*$id" && eventually nothing_left && start_daemon && eventually in_state error
}
adopted() {
    start_agent --name "survivor-$mode-$kind" -- /bin/sh -c 'echo one; sleep 6; echo two; exit 5' &&
        kill -KILL "$daemon" && sleep 1 && start_daemon && run colibri wait "$id"
    exits 5 && run colibri logs "survivor-$mode-$kind" && [ "$(cat "$out")" = "one
two" ]
}
monitor_killed() {
    next_tag
    start_agent -- /bin/sh -c "$(stubborn)" && eventually runs "$sleeps" &&
        monitor=$(pgrep -o -f "^$work/bin/colibri-jail-helper .*sleep $sleeps") && kill -KILL "$monitor" &&
        eventually ended && eventually nothing_left
}
ended() { in_state error || in_state "done"; }

# checks_of KIND DESCRIPTION: what holds in every confinement.
checks_of() {
    kind=$1 title=$2
    check "$title: the exit code is the agent's" code
    check "$title: death by signal N is exit code 128+N" signalled
    check "$title: standard input arrives, and the output contains nothing else" stdin
    check "$title: arguments arrive unchanged" arguments
    check "$title: an environment value arrives, and appears in no argv and no record" environment
    check "$title: INT of run reaches the agent" interrupted
    check "$title: kill lets every process handle TERM" terminated
    check "$title: kill ends a double-forked process in a new session that ignores TERM" killed
    check "$title: the wall-clock limit ends all processes" wall_time
    check "$title: the wall-clock limit ends all processes without a daemon" wall_time_alone
    check "$title: TERM to the shim ends all processes without a daemon" shim_terminated
    check "$title: a killed shim ends all processes, and the state is error" shim_killed
    check "$title: a killed daemon and shim end all processes, and the next daemon reports it" both_killed
    check "$title: an agent survives a killed daemon, and its exit code and output are complete" adopted
}

# Requests to a server on the host, whose port is allowed, and to one whose port is not.
# shellcheck disable=SC2028 # printf(1) in the jail expands them
request() { echo "printf 'GET http://127.0.0.1:$1/ HTTP/1.1\r\nHost: 127.0.0.1:$1\r\n\r\n' | nc -w 10 127.0.0.1 3128"; }
filtered_requests() {
    agent -- /bin/sh -c "$(request "$port"); $(request $((port + 1))); exit 3"
    exits 3 && stdout_has served && stdout_has '403 Forbidden' && ! stdout_has secret && stderr_has "refused a connection to 127.0.0.1:$((port + 1))"
}
# Only lo0 exists in the jail, the host's servers are not on it, and the agent cannot change that.
filtered_alone() {
    agent -- /bin/sh -c "ifconfig -l; nc -w 5 127.0.0.1 $port </dev/null || echo no server; nc -w 5 192.0.2.1 80 </dev/null || echo no route
        ifconfig lo0 127.0.0.2/8 alias || ifconfig lo1 create || echo fixed; echo \"\$HTTP_PROXY\""
    [ "$(cat "$out")" = 'lo0
no server
no route
fixed
http://127.0.0.1:3128' ]
}
filtered_restricted() {
    next_tag
    start_agent -- /bin/sleep "$sleeps" && eventually runs "$sleeps" && [ "$(jls -j "colibri-$id" vnet children.max)" = 'new 0' ] &&
        proxy_left && ended_by_kill --grace 0s
}
filtered_workspace() {
    agent --mount "$work/project:/work" --cwd /work -- /bin/sh -c "cat given; $(request "$port")"
    stdout_has given && stdout_has served && unmounted
}

# An agent whose only network is the proxy. Needs nc(1), and vnet(9) in the kernel.
filtered() {
    kind=filtered
    if [ -x /usr/bin/nc ] && [ "$(sysctl -n kern.features.vimage 2>/dev/null)" = 1 ]; then
        "$@"
    else
        directive=' # SKIP needs nc(1) and a kernel with VIMAGE'
    fi
}
# Answers each request to a port of the host with a text. An answer before the request would be an error of the server.
serve() {
    mkfifo "$work/answer-$1"
    while :; do
        # shellcheck disable=SC2094 # It is a FIFO.
        nc -N -l 127.0.0.1 "$1" <"$work/answer-$1" | {
            read -r _ && printf 'HTTP/1.1 200 OK\r\n\r\n%s\n' "$2"
        } >"$work/answer-$1" || sleep 1
    done
}

create_named() {
    next_tag
    spawn --jail-path "$root" --jail-user "$AG" --jail-ip4 disable -- /bin/sleep "$sleeps" &&
        eventually jail_there "colibri-$id" && [ "$(jls -j "colibri-$id" ip4)" = disable ]
}
create_restricted() {
    [ "$(jls -j "colibri-$id" securelevel enforce_statfs children.max allow.set_hostname allow.raw_sockets)" = '3 2 0 false false' ] &&
        ended_by_kill --grace 0s
}
attach_neighbour() {
    next_tag
    neighbour=$sleeps
    jexec "$JAIL" /bin/sleep "$neighbour" &
    kind=persistent
    killed && jail_there "$JAIL" && runs "$neighbour" && pkill -f "sleep $neighbour"
}

workspace() {
    run colibri run --jail-path "$root" --jail-user "$AG" --mount "$work/project:/work" --cwd /work -- \
        /bin/sh -c 'cat given; echo made >made; pwd'
    stdout_has given && stdout_has '^/work$' && [ "$(cat "$work/project/made")" = made ] && unmounted
}
read_only() {
    run colibri run --jail-path "$root" --jail-user "$AG" --mount "$work/project:/work:ro" -- /bin/sh -c 'echo x >/work/given'
    stderr_has 'Read-only' && [ "$(cat "$work/project/given")" = given ] && unmounted
}
# The target also exists when it is not mounted: it is empty.
mounted_file() {
    : >"$root/file"
    run colibri run --jail-path "$root" --jail-user "$AG" --mount "$work/project/given:/file" -- /bin/cat /file
    exits 0 && stdout_has '^given$' && [ ! -s "$root/file" ] && ! mount -p | grep -q "$root/file"
}
mounted_sleep() {
    next_tag
    spawn --jail-path "$root" --jail-user "$AG" --mount "$work/project:/work" -- /bin/sleep "$sleeps" &&
        eventually runs "$sleeps" && ! unmounted
}
mount_killed() { mounted_sleep && ended_by_kill --grace 1s; }
mount_lost() { mounted_sleep && pkill -KILL -f "colibri-shim .*$id" && eventually in_state error && eventually nothing_left; }
mount_restarted() {
    spawn --restart always --restart-limit 2 --restart-delay 10ms --jail-path "$root" --jail-user "$AG" --mount "$work/project:/work" -- \
        /bin/sh -c 'cat /work/given' && run colibri wait "$id"
    run colibri logs "$id"
    [ "$(grep -c given "$out")" = 3 ] && unmounted
}
# A mount point that the agent replaced leads the removal to no other mount.
mount_swapped() {
    next_tag
    install -d -o "$AG" "$root/tmp/a" && mkdir -p "$root/tmp/a/in/work" "$root/tmp/victim/in/work"
    mount -t nullfs "$work/project" "$root/tmp/victim/in/work" || return 1
    run colibri run --jail-path "$root" --jail-user "$AG" --mount "$work/project:/tmp/a/in/work" -- \
        /bin/sh -c 'mv /tmp/a /tmp/b && ln -s victim /tmp/a && echo swapped'
    mount -p | grep -q "$root/tmp/victim/in/work" && stdout_has swapped && ! mount -p | grep -q "$root/tmp/[ab]/in/work"
    answer=$?
    umount "$root/tmp/victim/in/work" 2>/dev/null
    return "$answer"
}
hostname_inside() {
    next_tag
    spawn --jail-path "$root" --hostname sandbox -- /bin/sleep "$sleeps" && eventually jail_there "colibri-$id" &&
        [ "$(jls -j "colibri-$id" host.hostname)" = sandbox ] && ended_by_kill --grace 0s
}
# Without racct(4) in the kernel a limit is refused: no process starts and no rule remains.
limited() {
    next_tag
    if [ "$(sysctl -n kern.racct.enable 2>/dev/null)" = 1 ]; then
        spawn --processes 5 --jail-path "$root" -- /bin/sleep "$sleeps" && eventually runs "$sleeps" &&
            rctl "jail:colibri-$id" | grep -q 'maxproc:deny=5' && ended_by_kill --grace 0s
    else
        run colibri run --processes 5 --jail-path "$root" -- /bin/echo started
        exits 125 && stderr_has racct && ! stdout_has started
    fi
}
# Where the kernel cannot enforce a limit, --best-effort starts the agent with a warning.
limited_best_effort() {
    run colibri run --best-effort --processes 5 --jail-path "$root" -- /bin/echo started
    exits 0 && stdout_has started && { [ "$(sysctl -n kern.racct.enable)" = 1 ] || stderr_has 'not enforced'; }
}
# An agent without a jail that became root by mdo is killed through the privilege backend.
elevated_agent() {
    next_tag
    kind=none
    start_agent -- /bin/sh -c "mdo -i -- /bin/sh -c 'trap \"\" TERM; exec /bin/sleep $sleeps' & wait" && eventually runs "$sleeps" &&
        ended_by_kill --grace 1s
}

# Advice of doctor.
advised_kernel() { run colibri doctor; stdout_has "kernel $(uname -r)"; }
advised_jail() {
    spawn --jail-name "$JAIL" -- /bin/sleep "${mark}991" && eventually runs "${mark}991" && run colibri doctor && stdout_has "jail $JAIL of agent $id has the default" || return 1
    jail -m name="$JAIL" allow.raw_sockets && run colibri doctor && jail -m name="$JAIL" allow.noraw_sockets || return 1
    stdout_has "^warn  jail $JAIL of agent $id is less restricted than by default: allow.raw_sockets (" && colibri kill --grace 0s "$id" >/dev/null 2>&1
}
# Two roots with the same nullfs directory. A run warns only on a kernel that lacks the fixes.
advised_share() {
    mkdir -p "$work/root2/bin" "$work/root2/work" && cp "$root/bin/sh" "$work/root2/bin/sleep" || return 1
    spawn --jail-path "$root" --mount "$work/project:/work" -- /bin/sleep "${mark}992" && eventually runs "${mark}992" || return 1
    first=$id
    spawn --jail-path "$work/root2" --mount "$work/project:/work:ro" -- /bin/sleep "${mark}993" && eventually runs "${mark}993" || return 1
    warned=no
    ! stderr_has "agent $first has $work/project too" || warned=yes
    run colibri doctor
    stdout_has "share $work/project, which one of them can write" && {
        stdout_has "^warn .*of agent $first .*share" && expected=yes || expected=no
        [ "$warned" = "$expected" ]
    }
    shared=$?
    colibri kill --grace 0s "$first" "$id" >/dev/null 2>&1
    return $shared
}
advised_unjailed() {
    spawn --jail-name "$JAIL" -- /bin/sleep "${mark}994" && eventually runs "${mark}994" || return 1
    first=$id
    spawn --no-jail -- sleep "${mark}995" && eventually runs "${mark}995" && run colibri doctor && colibri kill "$id" "$first" >/dev/null 2>&1
    stdout_has "agent $id without a jail and agent $first in jails"
}
# Of the kinds of users: none named, one named, and one that the helper's policy names.
advised_root() {
    run colibri explain --jail-name "$JAIL" -- /bin/true
    exits 0 && stderr_has 'is root in its jail.*--jail-user' && run colibri run --jail-path "$root" -- /bin/sh -c 'exit 0' &&
        exits 0 && stderr_has 'is root in its jail' && run colibri explain --jail-path "$root" --jail-user "$AG" -- /bin/true &&
        exits 0 && ! stderr_has 'is root in its jail' && stderr_has 'under a monitor: .* monitor ' || return 1
    privilege=helper
    run colibri explain --jail-name "$JAIL" -- /bin/true
    privilege=mdo
    exits 0 && [ ! -s "$err" ]
}
# script(1) makes a terminal of 0 columns and 0 rows if its own standard input is not a terminal.
top_unsized() {
    spawn --no-jail --name unsized -- sleep "${mark}996" || return 1
    (sleep 5; printf q; sleep 1) | as "$OP" TERM=vt100 COLIBRI_SOCKET="$work/run-$mode/colibri.sock" COLIBRI_STATE_DIR="$work/state-$mode" \
        script -q /dev/null "$work/bin/colibri" --no-autostart top >"$out" 2>"$err"
    colibri kill "$id" >/dev/null 2>&1
    stdout_has unsized && stdout_has RUNTIME
}
# terminal [ARG…]: the agent has a terminal, which reads and writes lines.
terminal() {
    spawn -t "$@" -- /bin/sh -c '[ -t 0 ] && [ -t 2 ] && read line && echo "line $line"' || return 1
    run colibri send "$id" hello
    exits 0 || return 1
    run colibri wait "$id"
    exits 0 || return 1
    run colibri logs "$id"
    stdout_has '^line hello'
}
kill_without_jail() { next_tag; kind=none; killed && ! stderr_has 'already ended'; }

install -d -o "$OP" -m 777 "$work/project" || bail "cannot create $work/project"
echo given >"$work/project/given"
mkdir "$root/work" || bail "cannot create $root/work"

mode=mdo privilege=mdo
check 'mdo mode: the daemon starts' start_daemon
check 'mdo mode: its socket is 0600 in a directory 0700' daemon_modes
check 'mdo mode: doctor reports no problem' doctor
check 'mdo mode: without a jail the exit code and output are exact' plain_code
checks_of persistent 'mdo, persistent jail'
check 'mdo, persistent jail: the user is the requested one' user
check 'mdo, persistent jail: an unrelated process in it, and the jail, survive a kill' attach_neighbour
kind=persistent
check 'mdo, persistent jail: a killed monitor ends the agent' monitor_killed
checks_of ephemeral 'mdo, ephemeral jail'
check 'mdo, ephemeral jail: the user is the requested one' user
check 'mdo, ephemeral jail: its name is colibri-ID, and it has the requested ip4' create_named
check 'mdo, ephemeral jail: securelevel, enforce_statfs, children.max and allow are restricted' create_restricted
check 'mdo, ephemeral jail: a killed monitor ends the agent and its jail' monitor_killed
check 'mdo, no jail: kill ends all processes' kill_without_jail
check 'mdo, no jail: kill ends a process that became root' elevated_agent
check 'doctor: it judges the kernel by its release' advised_kernel
check 'doctor: it reports a jail with more rights than by default' advised_jail
check 'doctor: it reports a directory that two jails share' advised_share
check 'doctor: it reports an agent without a jail beside jailed ones' advised_unjailed
check 'run and explain: they warn of an agent that is root in its jail' advised_root
check 'top: it draws on a terminal without a size' top_unsized
check 'terminal: without a jail' terminal --no-jail
check 'terminal: in a persistent jail' terminal --jail-name "$JAIL"
check 'terminal: in an ephemeral jail' terminal --jail-path "$root"
check 'mdo mode: a mount has the requested target, is writable, and is removed at the end' workspace
check 'mdo mode: a read-only mount is read-only' read_only
check 'mdo mode: a file is mounted, and removed at the end' mounted_file
check 'mdo mode: kill removes mounts' mount_killed
check 'mdo mode: the end of a killed shim removes mounts' mount_lost
check 'mdo mode: each run of a restarted agent has its mounts once' mount_restarted
check 'mdo mode: a replaced mount point unmounts nothing else' mount_swapped
check 'mdo mode: an ephemeral jail has the requested host name' hostname_inside
check 'mdo mode: limits are rctl(8) rules that are removed at the end, or are refused' limited
check 'mdo mode: --best-effort starts the agent where limits cannot be enforced' limited_best_effort
if [ -x /usr/bin/nc ]; then
    serve "$port" served &
    servers=$!
    serve $((port + 1)) secret &
    servers="$servers $!"
fi
check 'mdo, filtered network: the agent reaches an allowed destination, and no other' filtered filtered_requests
check 'mdo, filtered network: the jail has no other interface, route or server, and the agent cannot configure one' filtered filtered_alone
check 'mdo, filtered network: the exit code is exact' filtered code
check 'mdo, filtered network: death by signal N is exit code 128+N' filtered signalled
check 'mdo, filtered network: a proxy runs beside the jail, which has its own network, and ends with it' filtered filtered_restricted
check 'mdo, filtered network: kill ends a double-forked process in a new session that ignores TERM' filtered killed
check 'mdo, filtered network: a killed shim ends all processes and the proxy' filtered shim_killed
check 'mdo, filtered network: a killed monitor ends the agent, its jail and its proxy' filtered monitor_killed
check 'mdo, filtered network: with a mount too' filtered filtered_workspace

# ---- roots from a template, with mdo ---------------------------------------------------------------------------

template=$work/template
cp -Rxl "$root" "$template" || bail "cannot create a template"
rm -rf "${template:?}/etc" "${template:?}/tmp"
mkdir -p "$template/dev" "$template/etc" "$template/home" "$template/var" "$template/var/run" "$template/secret" || bail "cannot create a template"
install -d -m 1777 "$template/tmp" "$template/var/tmp"
install -d -o "$AG" -m 750 "$template/home/agent"
{
    echo 'root:*:0:0::0:0:root:/root:/bin/sh'
    echo "$AG:*:$ag_uid:$ag_uid::0:0:agent:/home/agent:/bin/sh"
} >"$template/etc/master.passwd"
pwd_mkdb -p -d "$template/etc" "$template/etc/master.passwd" || bail "cannot create the user table of the template"
install -d "$work/existing/dev"
ln -s ../secret "$template/var/run/link"
listing() { (cd "$template" && ls -lRTi); }
listing >"$work/template.before"

none_left() { ! mount -p | grep -q "$ROOTS" && { [ ! -e "$ROOTS" ] || [ -z "$(ls "$ROOTS")" ]; }; }

template_private() {
    next_tag
    kind=template
    start_agent -- /bin/sh -c "umask 0; echo one >/tmp/one; echo one >/home/agent/one; echo one >/var/tmp/one; echo ready; sleep $sleeps" &&
        eventually logged ready && agent -- /bin/sh -c 'cd /home/agent && echo two >/tmp/two && echo /tmp/* /home/agent/* /var/tmp/*; id -u' &&
        stdout_has '^/tmp/two /home/agent/\* /var/tmp/\*$' && stdout_has "^$ag_uid\$" && runs "$sleeps" && ended_by_kill --grace 0s && none_left
}
# Also root of the jail can write only the private directories.
template_read_only() {
    run colibri run --jail-template "$template" -- /bin/sh -c \
        'for file in /bin/sh /etc/passwd /new /home/agent/../new /secret/new; do echo x >"$file" && echo "wrote $file"; done; : >/var/run/pid; echo end'
    exits 0 && [ "$(cat "$out")" = end ] && stderr_has 'Read-only' && listing | cmp -s - "$work/template.before"
}
template_devices() {
    run colibri run --jail-template "$template" -- /bin/sh -c 'echo x >/dev/null && ls /dev'
    exits 0 && stdout_has '^null$' && stdout_has '^fd$' || return 1
    for device in mem kmem devctl geom.ctl $(sysctl -n kern.disks); do
        ! stdout_has "^$device\$" || return 1
    done
}
descriptors='exec 3</etc/passwd; if [ -L /dev/fd/3 ]; then echo link; elif [ -e /dev/fd/3 ]; then echo file; else echo none; fi'
template_descriptors() {
    run colibri run --jail-template "$template" --jail-fdescfs -- /bin/sh -c "$descriptors"
    stdout_has '^link$' && run colibri run --jail-template "$template" -- /bin/sh -c "$descriptors" && stdout_has '^none$'
}
template_mount() {
    run colibri run --jail-template "$template" --jail-user "$AG" --mount "$work/project:/tmp/a/b" --mount "$work/project:/work:ro" --cwd /tmp/a/b -- \
        /bin/sh -c 'cat given; echo template >made; pwd; cat /work/made'
    exits 0 && stdout_has '^given$' && stdout_has '^/tmp/a/b$' && stdout_has '^template$' && [ "$(cat "$work/project/made")" = template ] && none_left
}
template_mount_refused() {
    run colibri run --jail-template "$template" --mount "$work/project:/missing" -- /bin/echo started
    exits 125 && stderr_has 'is not a directory in the jail' && ! stdout_has started && none_left
}
template_restarted() {
    spawn --restart always --restart-limit 2 --restart-delay 10ms --jail-template "$template" -- \
        /bin/sh -c 'echo /tmp/*; echo x >/tmp/x' && run colibri wait "$id"
    run colibri logs "$id"
    [ "$(tr '\n' ' ' <"$out")" = '/tmp/* /tmp/* /tmp/* ' ] && none_left
}
template_in_use() {
    next_tag
    kind=template
    start_agent -- /bin/sh -c "$(stubborn)" && eventually runs "$sleeps" || return 1
    # This process has a private directory open; the removal does not wait for it.
    exec 9<"$ROOTS/colibri-$id/tmp"
    ended_by_kill --grace 0s && none_left
    answer=$?
    exec 9<&-
    return "$answer"
}
template_monitor_killed() { kind=template && monitor_killed && none_left; }
template_helper() {
    privilege=helper
    run colibri explain --jail-template "$template" -- /bin/echo
    privilege=mdo
    exits 1 && stderr_has '--jail-template' && stderr_has '--jail-path'
}
devfs_existing() {
    cp -Rxl "$root/bin" "$work/existing/" && next_tag && spawn --jail-path "$work/existing" --jail-devfs -- \
        /bin/sh -c "ls /dev; sleep $sleeps" && eventually logged null && ! logged '^mem$' && ended_by_kill --grace 0s &&
        ! mount -p | grep -q "$work/existing" && none_left
}
devfs_mounted() {
    run colibri run --jail-path "$root" --jail-devfs -- /bin/echo started
    ! exits 0 && stderr_has 'is a mount point already' && ! stdout_has started && [ -e "$root/dev/null" ] && none_left
}

check 'mdo, template: two agents do not see each other'"'"'s files, and nothing is left' template_private
check 'mdo, template: it is read-only and unchanged' template_read_only
check 'mdo, template: /dev has null and no device of the host' template_devices
check 'mdo, template: fdescfs is mounted with linrdlnk on request only' template_descriptors
check 'mdo, template: mount points are created in private directories' template_mount
check 'mdo, template: another mount point must exist' template_mount_refused
check 'mdo, template: each run of a restarted agent has a new root' template_restarted
check 'mdo, template: a file that another process has open delays no removal' template_in_use
check 'mdo, template: a killed monitor ends the agent, and its root is removed' template_monitor_killed
check 'mdo, template: the helper refuses it' template_helper
check 'mdo, devfs in an existing root: it is mounted on request, and removed' devfs_existing
check 'mdo, devfs in an existing root: a mount point in use is refused and stays' devfs_mounted
checks_of template 'mdo, template'
check 'mdo, template: no root is left of all these agents' none_left

kill -TERM "$daemon" 2>/dev/null
daemon=''

refused() {
    wanted=$1
    shift
    run "$@"
    exits "$wanted" && [ "$(wc -l <"$err")" -eq 1 ] && stderr_has '^colibri-jail-helper: '
}
create_words() { echo create --jail colibri-cbrt --path "$root" --ip4 disable --user "$AG"; }
helper_rules() { run helper check; exits 0 && stdout_has "$root" && ! stdout_has "$OP"; }
helper_env() {
    # shellcheck disable=SC2046 # words
    run helper $(create_words) -- /bin/sh -c 'echo "${GIVEN-none} ${OTHER-none} ${LD_PRELOAD-none} $USER $HOME"'
    stdout_has "^yes none none $AG /tmp\$"
}
helper_state() {
    # shellcheck disable=SC2046 # words
    run helper $(create_words) --workdir /tmp -- /bin/sh -c 'umask; ulimit -n; pwd'
    [ "$(tr '\n' ' ' <"$out")" = '0022 512 /tmp ' ]
}
helper_open_policy() {
    chmod 666 "$POLICY"
    refused 71 helper check
    answer=$?
    chmod 644 "$POLICY"
    return "$answer"
}
helper_stranger() {
    jexec "$JAIL" /bin/sleep "${mark}6" &
    eventually runs "${mark}6" &&
        refused 77 helper signal --jail "$JAIL" --signal KILL --pid "$(pgrep -f "sleep ${mark}6")" &&
        runs "${mark}6" && pkill -f "sleep ${mark}6"
}

check 'helper: without the setuid bit it is exit code 71' refused 71 as "$OP" "$work/bin/helper-plain" check
check 'helper: a user that no rule names is exit code 77' refused 77 as "$AG" "$work/bin/colibri-jail-helper" check
check 'helper: invalid arguments are exit code 64' refused 64 helper attach --jail=x
check 'helper: a root that no rule has is exit code 77' refused 77 helper create --jail colibri-cbrt --path /etc --ip4 disable -- sh
check 'helper: a policy that others can write is exit code 71' helper_open_policy
check 'helper: check prints the caller'"'"'s rules and no callers' helper_rules
check 'helper: only named variables pass, and USER and HOME are the jail'"'"'s' helper_env
check 'helper: umask, limits and working directory are its own' helper_state
check 'helper: a stranger in the same jail is not signalled' helper_stranger
check 'helper: a jail that it did not make is not removed' refused 77 helper remove --jail colibri-cbrtnone

mode=helper privilege=helper
check 'helper mode: the daemon starts' start_daemon
check 'helper mode: doctor reports no problem' doctor
checks_of persistent 'helper, persistent jail'
check 'helper, persistent jail: the user is the requested one' user
check 'helper, persistent jail: an unrelated process in it, and the jail, survive a kill' attach_neighbour
kind=persistent
check 'helper, persistent jail: a killed monitor ends the agent' monitor_killed
checks_of ephemeral 'helper, ephemeral jail'
check 'helper, ephemeral jail: the user is the requested one' user
check 'helper, ephemeral jail: its name is colibri-ID, and it has the requested ip4' create_named
check 'helper, ephemeral jail: securelevel, enforce_statfs, children.max and allow are restricted' create_restricted
check 'helper, ephemeral jail: a killed monitor ends the agent and its jail' monitor_killed
check 'helper, filtered network: the agent reaches an allowed destination, and no other' filtered filtered_requests
check 'helper, filtered network: the jail has no other interface, route or server, and the agent cannot configure one' filtered filtered_alone
check 'helper, filtered network: the exit code is exact' filtered code
check 'helper, filtered network: death by signal N is exit code 128+N' filtered signalled
check 'helper, filtered network: a proxy runs beside the jail, which has its own network, and ends with it' filtered filtered_restricted
check 'helper, filtered network: kill ends a double-forked process in a new session that ignores TERM' filtered killed
check 'helper, filtered network: a killed shim ends all processes and the proxy' filtered shim_killed
check 'helper, filtered network: a killed monitor ends the agent, its jail and its proxy' filtered monitor_killed

kill -TERM "$daemon" 2>/dev/null
daemon=''

# shellcheck source=tests/freebsd/torture.sh
[ -z "$torture" ] || . "$here/tests/freebsd/torture.sh"

# ---- the service -------------------------------------------------------------------------------------------

mkdir -p "${RCCONF%/*}"
cat >"$RCCONF" <<RC || bail "cannot write $RCCONF"
colibri_user="$OP"
colibri_socket="$work/run-rc/colibri.sock"
colibri_state_dir="$work/state-rc"
colibri_program="$work/bin/colibri-daemon"
colibri_env="COLIBRI_JAIL_PRIV_MODE=mdo COLIBRI_JAIL_HELPER=$work/bin/colibri-jail-helper"
RC
mode=rc privilege=mdo

service_colibri() { sh "$here/packaging/freebsd/rc.d/colibri" "$1"; }
service_start() { run service_colibri onestart; exits 0 && eventually answers && run service_colibri onestatus && exits 0; }
service_reload() {
    spawn --jail-name "$JAIL" --jail-user "$AG" -- /bin/sleep "${mark}7" && eventually runs "${mark}7" &&
        served=$(cat /var/run/colibri-daemon.pid) && run service_colibri onereload
    exits 0 && eventually answers && [ "$(cat /var/run/colibri-daemon.pid)" = "$served" ] && runs "${mark}7" && ! in_state error
}
service_stop() { run service_colibri onestop; exits 0 && runs "${mark}7" && ! answers; }
service_adopts() { run service_colibri onestart; eventually answers && run colibri kill "$id" && exits 0 && gone "${mark}7"; }

service_doctor() { run service_colibri onedoctor; stdout_has 'state directory .* is private and writable'; }
service_prune() { run service_colibri oneprune --older-than 30d; exits 0; }
# Runs doctor of the service in a terminal, with a program in place of colibri(1) that reports what it can reach.
service_terminal() {
    mkdir -p "$work/report" && cp "$RCCONF" "$work/rc.conf" || return 1
    cat >"$work/report/colibri" <<REPORT
#!/bin/sh
for descriptor in 0 1 2; do
    eval "[ ! -t \$descriptor ] || echo descriptor \$descriptor is a terminal"
    eval "$built/attack inject <&\$descriptor" 2>/dev/null
done
id -un
ps -o tty= -p \$\$ >"$work/project/tty"
echo message >&2
exit 42
REPORT
    chmod 755 "$work/report/colibri"
    rm -f "$work/project/tty"
    echo "colibri_program=\"$work/report/colibri-daemon\"" >>"$RCCONF"
    run script -q /dev/null /bin/sh -c 'tty >"$1/caller"; sh "$0" onedoctor 2>"$1/messages"; echo "code $?"' \
        "$here/packaging/freebsd/rc.d/colibri" "$work"
    cp "$work/rc.conf" "$RCCONF"
    tr -d '\r' <"$out" >"$work/report/out" && cp "$work/report/out" "$out"
    own=$(tr -d ' ' <"$work/project/tty") caller=$(cat "$work/caller")
    echo "terminals: $own, of root: $caller" >>"$err"
    [ "${caller#/dev/pts/}" != "$caller" ] && [ -n "$own" ] && [ "/dev/$own" != "$caller" ] &&
        ! stdout_has 'is a terminal' && ! stdout_has injected && stdout_has "$OP\$"
}
# rc.subr(8) reports each failure as code 1.
service_output() { run cat "$work/report/out" "$work/messages"; stdout_has '^code 1$' && [ "$(cat "$work/messages")" = message ]; }
periodic_off() { run sh "$here/packaging/freebsd/periodic/daily/490.colibri"; exits 0 && [ ! -s "$out" ]; }
log_rotates() { run newsyslog -nv -f "$here/packaging/freebsd/newsyslog.conf.d/colibri.conf"; stdout_has '^/var/log/colibri.log <7J>'; }

check 'service: start, and status reports that it runs' service_start
check 'service: reload ends neither the daemon nor an agent' service_reload
check 'service: stop leaves the agent running' service_stop
check 'service: the next start adopts the agent, and kill ends it' service_adopts
check 'service: doctor runs as the service'"'"'s user' service_doctor
check 'service: prune runs as the service'"'"'s user' service_prune
check 'service: doctor gives its user no access to the terminal of root' service_terminal
check 'service: doctor keeps exit code, output and messages' service_output
check 'periodic: the daily script does nothing unless it is enabled' periodic_off
check 'newsyslog: the log of the service is rotated' log_rotates

# ---- attacks ---------------------------------------------------------------------------------------------

# shellcheck source=tests/freebsd/attacks.sh
[ -z "$attacks" ] || . "$here/tests/freebsd/attacks.sh"
# shellcheck source=tests/freebsd/mount-attacks.sh
[ -z "$attacks" ] || . "$here/tests/freebsd/mount-attacks.sh"

[ "$number" = "$PLAN" ] || bail "ran $number checks, planned $PLAN"
[ "$failed" = 0 ] || echo "# $failed of $PLAN failed"
[ "$failed" = 0 ]
