#!/bin/sh
# Acceptance test on a FreeBSD 15 host: verifies, as root, that jexec(8), jail(8), mdo(1), the setuid helper and the rc.d
# script work with Colibri's programs as docs/ describes.
#
# usage: tests/freebsd/acceptance.sh DIRECTORY
#
# DIRECTORY contains colibri, colibri-daemon, colibri-shim and colibri-jail-helper, built for this host. Prints TAP. Creates
# two users, a jail, mac_do(4) rules, a policy and an rc.conf.d file, and removes them, even if interrupted.
# Exit status: 0 all checks passed, 1 a check or the set-up failed, 2 this host is unsuitable.
#
# shellcheck disable=SC2016 # shells in jails expand these strings
set -u

PLAN=73

cannot() {
    printf 'acceptance.sh: %s\n' "$*" >&2
    exit 2
}

[ $# = 1 ] || cannot "usage: tests/freebsd/acceptance.sh DIRECTORY, which contains the four programs"
[ "$(uname -s)" = FreeBSD ] || cannot "this is $(uname -s); it runs on FreeBSD 15, which has jail(8), jexec(8), mdo(1) and mac_do(4)"
case $(uname -r) in
    15.*) ;;
    *) cannot "this is FreeBSD $(uname -r); it runs on FreeBSD 15" ;;
esac
[ "$(id -u)" = 0 ] || cannot "root is required to create users and jails"
for program in colibri colibri-daemon colibri-shim colibri-jail-helper; do
    [ -x "$1/$program" ] || cannot "$1/$program is missing; build it for this host and pass its directory"
done
built=$(cd "$1" && pwd)
here=$(cd "$(dirname "$0")/../.." && pwd)

OP=cbrtop AG=cbrtag         # the daemon's user, and the agents'
JAIL=cbrtjail               # a persistent jail
POLICY=/usr/local/etc/colibri/helper.toml
RCCONF=/etc/rc.conf.d/colibri
mark=$((70000 + $$ % 10000)) # part of the argument of each sleep, which identifies the processes of this run

for file in "$POLICY" "$RCCONF" /usr/local/etc/colibri/colibri.toml; do
    [ ! -e "$file" ] || cannot "$file exists; use a host without a Colibri installation"
done
for user in "$OP" "$AG"; do
    ! id "$user" >/dev/null 2>&1 || cannot "user $user exists from an earlier run; remove it: pw userdel $user"
done
! jls -j "$JAIL" >/dev/null 2>&1 || cannot "jail $JAIL exists from an earlier run; remove it: jail -R $JAIL"
[ ! -e /var/run/colibri.pid ] || cannot "/var/run/colibri.pid exists; stop the Colibri service"

# ---- set-up ----------------------------------------------------------------------------------------------

number=0 failed=0 daemon='' loaded='' mounted='' rules='' made_etc='' work=''

# The work directory is outside /tmp and /var/tmp, which on ZFS usually ignore setuid bits.
clean_up() {
    status=$?
    trap '' INT TERM HUP
    set +e
    [ ! -e "$RCCONF" ] || sh "$here/packaging/freebsd/rc.d/colibri" onestop >/dev/null 2>&1
    [ -z "$daemon" ] || kill -KILL "$daemon" 2>/dev/null
    for jail in $(jls name 2>/dev/null | grep '^colibri-'); do
        [ -z "$work" ] || [ "$(jls -j "$jail" path)" != "$work/root" ] || jail -R "$jail"
    done
    jail -R "$JAIL" 2>/dev/null
    pkill -KILL -U "$OP" 2>/dev/null
    pkill -KILL -U "$AG" 2>/dev/null
    pkill -KILL -f "sleep $mark" 2>/dev/null
    rm -f "$POLICY" "$RCCONF"
    [ -z "$made_etc" ] || rmdir "${POLICY%/*}" 2>/dev/null
    [ -z "$rules" ] || sysctl -q security.mac.do.rules="${rules#was:}" >/dev/null
    [ -z "$loaded" ] || kldunload mac_do
    [ -z "$work" ] || umount "$work/root/work" 2>/dev/null
    if [ -n "$mounted" ]; then
        tries=0
        until umount "$work/root/dev" 2>/dev/null || [ $tries = 10 ]; do
            tries=$((tries + 1))
            sleep 1
        done
    fi
    for user in "$OP" "$AG"; do
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
for program in colibri colibri-daemon colibri-shim; do
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

# The root contains static programs, and daemon(8) with its libraries, which starts a new session.
root=$work/root
mkdir "$root/bin" "$root/dev" "$root/etc" "$root/lib" "$root/libexec" "$root/usr" "$root/usr/lib"
install -d -m 1777 "$root/tmp"
cp /rescue/sh "$root/bin/sh" || bail "cannot copy /rescue/sh"
for program in cat echo id kill ls ps pwd sleep; do
    [ -x "/rescue/$program" ] || bail "/rescue/$program is missing"
    ln "$root/bin/sh" "$root/bin/$program"
done
cp /usr/sbin/daemon "$root/bin/" || bail "cannot copy daemon(8)"
cp /libexec/ld-elf.so.1 "$root/libexec/" || bail "cannot copy the linker of daemon(8)"
for library in $(ldd -f '%p\n' /usr/sbin/daemon 2>/dev/null | grep '^/'); do
    cp "$library" "$root/lib/" || bail "cannot copy $library"
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
environment = ["PATH", "LANG", "COLIBRI_AGENT_ID", "GIVEN"]
signals = ["TERM", "INT", "HUP", "KILL"]

[rule.limits]
open_files = 512
POLICY_TEXT
chmod 644 "$POLICY"

# ---- tools -----------------------------------------------------------------------------------------------

# check DESCRIPTION COMMAND [ARG…]: one TAP line.
check() {
    number=$((number + 1))
    description=$1
    shift
    : >"$out"
    : >"$err"
    code=none
    if "$@"; then
        echo "ok $number - $description"
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

daemon_up() {
    daemon=$(pgrep -f "^$work/bin/colibri-daemon --socket $work/run-$mode/") && answers
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
# Matches sleep itself, not a shell whose script contains the argument.
runs() { pgrep -f "^(/bin/)?sleep $1\$" >/dev/null; }
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
plain_code() { run colibri run -- sh -c 'echo hi; exit 7'; exits 7 && stdout_has '^hi$'; }
attach_code() { run colibri run --jail-name "$JAIL" --jail-user "$AG" -- /bin/sh -c 'exit 42'; exits 42; }
attach_signal() { run colibri run --jail-name "$JAIL" --jail-user "$AG" -- /bin/sh -c 'kill -9 $$'; exits 137; }
attach_user() { run colibri run --jail-name "$JAIL" --jail-user "$AG" -- /bin/id -u; stdout_has "^$ag_uid\$"; }
attach_stdin() { echo in | colibri run --jail-name "$JAIL" --jail-user "$AG" -- /bin/cat >"$out" 2>"$err"; stdout_has '^in$'; }
logged() { colibri logs "$id" 2>"$err" | tee "$out" | grep -q "$1"; }
attach_env() {
    spawn --env GIVEN="secret$mark" --jail-name "$JAIL" --jail-user "$AG" -- /bin/sh -c 'echo "$GIVEN"; sleep 15' &&
        eventually logged "secret$mark" && ps -axww -o command >"$work/ps" &&
        ! grep "secret$mark" "$work/ps" "$work/state-$mode/agents/$id"/*.json "$work/state-$mode/audit.jsonl"
}
create_collapsed() { run colibri run --jail-path "$root" --jail-user "$AG" -- /bin/sh -c 'exit 42'; exits 1 && stderr_has 'exit code 1'; }
create_exact() { run colibri run --jail-path "$root" --jail-user "$AG" -- /bin/sh -c 'exit 42'; exits 42; }
create_signal() { run colibri run --jail-path "$root" --jail-user "$AG" -- /bin/sh -c 'kill -9 $$'; exits 137; }
create_stdin() { echo in | colibri run --jail-path "$root" --jail-user "$AG" -- /bin/cat >"$out" 2>"$err"; [ "$(cat "$out")" = in ]; }
create_named() {
    spawn --jail-path "$root" --jail-user "$AG" --jail-ip4 disable -- /bin/sleep "${mark}1" &&
        eventually jail_there "colibri-$id" && [ "$(jls -j "colibri-$id" ip4)" = disable ]
}
create_killed() { run colibri kill --grace 2s "$id"; exits 0 && eventually gone "${mark}1" && jail_gone "colibri-$id"; }
create_forked() {
    spawn --jail-path "$root" --jail-user "$AG" -- /bin/sh -c "daemon -f sleep ${mark}2; trap '' TERM; while :; do sleep 1; done" &&
        eventually runs "${mark}2" && run colibri kill --grace 1s "$id"
    exits 0 && gone "${mark}2" && jail_gone "colibri-$id"
}
attach_forked() {
    jexec "$JAIL" /bin/sleep "${mark}4" &
    spawn --jail-name "$JAIL" --jail-user "$AG" -- /bin/sh -c "daemon -f sleep ${mark}3; trap '' TERM; while :; do sleep 1; done" &&
        eventually runs "${mark}3" && eventually runs "${mark}4" && run colibri kill --grace 1s "$id"
    exits 0 && gone "${mark}3"
}
jail_and_others_stay() { jail_there "$JAIL" && runs "${mark}4" && pkill -f "sleep ${mark}4"; }
shim_killed() {
    spawn --jail-name "$JAIL" --jail-user "$AG" -- /bin/sleep "${mark}5" && eventually runs "${mark}5" &&
        pkill -KILL -f "colibri-shim .*$id" && eventually gone "${mark}5" && eventually in_state error
}
daemon_killed() {
    spawn --name survivor --jail-name "$JAIL" --jail-user "$AG" -- /bin/sh -c "echo one; sleep 6; echo two; exit 5" &&
        kill -KILL "$daemon" && sleep 1 && start_daemon && run colibri wait "$id"
    exits 5
}
daemon_killed_output() { run colibri logs survivor; [ "$(cat "$out")" = "one
two" ]; }

unmounted() { ! mount -p | grep -q "$root/work"; }
workspace() {
    run colibri run --jail-path "$root" --jail-user "$AG" --mount "$work/project:/work" --cwd /work -- \
        /bin/sh -c 'cat given; echo made >made; pwd'
    stdout_has given && stdout_has '^/work$' && [ "$(cat "$work/project/made")" = made ] && unmounted
}
read_only() {
    run colibri run --jail-path "$root" --jail-user "$AG" --mount "$work/project:/work:ro" -- /bin/sh -c 'echo x >/work/given'
    stderr_has 'Read-only' && [ "$(cat "$work/project/given")" = given ] && unmounted
}
mount_killed() {
    spawn --jail-path "$root" --jail-user "$AG" --mount "$work/project:/work" -- /bin/sleep "${mark}6" &&
        eventually runs "${mark}6" && ! unmounted && run colibri kill --grace 1s "$id"
    exits 0 && unmounted
}
mount_lost() {
    spawn --jail-path "$root" --jail-user "$AG" --mount "$work/project:/work" -- /bin/sleep "${mark}7" &&
        eventually runs "${mark}7" && pkill -KILL -f "colibri-shim .*$id" && eventually in_state error && eventually unmounted
}
mount_restarted() {
    spawn --restart always --restart-limit 2 --restart-delay 10ms --jail-path "$root" --jail-user "$AG" --mount "$work/project:/work" -- \
        /bin/sh -c 'cat /work/given' && run colibri wait "$id"
    run colibri logs "$id"
    [ "$(grep -c given "$out")" = 3 ] && unmounted
}
hostname_inside() {
    spawn --jail-path "$root" --hostname sandbox -- /bin/sleep "${mark}8" && eventually jail_there "colibri-$id" &&
        [ "$(jls -j "colibri-$id" host.hostname)" = sandbox ] && run colibri kill --grace 0s "$id" && exits 0
}
# Without racct(4) in the kernel a limit is refused: no process starts and no rule remains.
limited() {
    if [ "$(sysctl -n kern.racct.enable 2>/dev/null)" = 1 ]; then
        spawn --processes 5 --jail-path "$root" -- /bin/sleep "${mark}9" && eventually runs "${mark}9" &&
            rctl "jail:colibri-$id" | grep -q 'maxproc:deny=5' && run colibri kill --grace 0s "$id"
        exits 0 && ! rctl "jail:colibri-$id" | grep -q maxproc
    else
        run colibri run --processes 5 --jail-path "$root" -- /bin/echo started
        exits 125 && stderr_has rctl && ! stdout_has started
    fi
}

install -d -o "$OP" -m 777 "$work/project" || bail "cannot create $work/project"
echo given >"$work/project/given"
mkdir "$root/work" || bail "cannot create $root/work"

mode=mdo privilege=mdo
check 'mdo mode: the daemon starts' start_daemon
check 'mdo mode: its socket is 0600 in a directory 0700' daemon_modes
check 'mdo mode: doctor reports no problem' doctor
check 'mdo mode: without a jail the exit code and output are exact' plain_code
check 'mdo mode: in a persistent jail the exit code is exact' attach_code
check 'mdo mode: in a persistent jail death by signal N is exit code 128+N' attach_signal
check 'mdo mode: in a persistent jail the user is the requested one' attach_user
check 'mdo mode: in a persistent jail standard input arrives' attach_stdin
check 'mdo mode: an environment value arrives, and appears in no argv and no record' attach_env
check 'mdo mode: in an ephemeral jail exit code 42 is reported as 1, with a note' create_collapsed
check 'mdo mode: in an ephemeral jail standard input arrives, and the output contains nothing else' create_stdin
check 'mdo mode: an ephemeral jail is named colibri-ID and has the requested ip4' create_named
check 'mdo mode: kill ends the agent and its jail' create_killed
check 'mdo mode: kill ends a double-forked process in a new session, and the jail' create_forked
check 'mdo mode: kill in a persistent jail ends a double-forked process in a new session' attach_forked
check 'mdo mode: the persistent jail and an unrelated process in it stay' jail_and_others_stay
check 'mdo mode: a killed shim ends its agent, and the state is error' shim_killed
check 'mdo mode: an agent survives a killed daemon, and the next daemon reports its exit code' daemon_killed
check 'mdo mode: and has all of its output' daemon_killed_output
check 'mdo mode: a mount has the requested target, is writable, and is removed at the end' workspace
check 'mdo mode: a read-only mount is read-only' read_only
check 'mdo mode: kill removes mounts' mount_killed
check 'mdo mode: the daemon removes the mounts of a killed shim' mount_lost
check 'mdo mode: each run of a restarted agent has its mounts once' mount_restarted
check 'mdo mode: an ephemeral jail has the requested host name' hostname_inside
check 'mdo mode: limits are rctl(8) rules that are removed at the end, or are refused' limited

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
check 'helper mode: in a persistent jail the exit code is exact' attach_code
check 'helper mode: in an ephemeral jail the exit code is exact' create_exact
check 'helper mode: in an ephemeral jail death by signal N is exit code 128+N' create_signal
check 'helper mode: in an ephemeral jail standard input arrives' create_stdin
check 'helper mode: an ephemeral jail is named colibri-ID and has the requested ip4' create_named
check 'helper mode: kill ends the agent and its jail' create_killed
check 'helper mode: kill ends a double-forked process in a new session, and the jail' create_forked
check 'helper mode: kill in a persistent jail ends a double-forked process in a new session' attach_forked
check 'helper mode: the persistent jail and an unrelated process in it stay' jail_and_others_stay
check 'helper mode: a killed shim ends its agent, and the state is error' shim_killed
check 'helper mode: an agent survives a killed daemon, and the next daemon reports its exit code' daemon_killed

kill -TERM "$daemon" 2>/dev/null
daemon=''

# ---- the service -------------------------------------------------------------------------------------------

mkdir -p "${RCCONF%/*}"
cat >"$RCCONF" <<RC || bail "cannot write $RCCONF"
colibri_user="$OP"
colibri_socket="$work/run-rc/colibri.sock"
colibri_state_dir="$work/state-rc"
colibri_program="$work/bin/colibri-daemon"
colibri_env="COLIBRI_JAIL_PRIV_MODE=mdo"
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

check 'service: start, and status reports that it runs' service_start
check 'service: reload ends neither the daemon nor an agent' service_reload
check 'service: stop leaves the agent running' service_stop
check 'service: the next start adopts the agent, and kill ends it' service_adopts

[ "$number" = "$PLAN" ] || bail "ran $number checks, planned $PLAN"
[ "$failed" = 0 ] || echo "# $failed of $PLAN failed"
[ "$failed" = 0 ]
