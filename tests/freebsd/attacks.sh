# shellcheck shell=sh
# Attempts to misuse the setuid helper, run by tests/freebsd/acceptance.sh --attacks with its set-up. Each attempt is one TAP line,
# which is ok if the attempt is refused or without effect, and leaves no jail, agent or monitor. docs/security.md lists
# their classes. The program attack does what a shell cannot.
#
# shellcheck disable=SC2016,SC2046,SC2086,SC2153,SC2154 # shells in jails expand strings; words are split; acceptance.sh assigns variables

H=$work/bin/colibri-jail-helper
RECORDS=/var/run/colibri-helper
tree=$work/tree             # a directory of the other caller with roots: r of root, own of the caller
noise=$work/noise           # output of commands that are not checked

# ---- set-up ----------------------------------------------------------------------------------------------

[ -x "$built/attack" ] || bail "$built/attack is missing; build it for this host: cargo build -p colibri-tests --bin attack"
install -m 755 "$built/attack" "$work/bin/attack" || bail "cannot copy attack"
for user in "$OT" "$AO"; do
    pw useradd "$user" -d / -s /bin/sh -w no -c 'Colibri acceptance' || bail "cannot create user $user"
done
ot_uid=$(id -u "$OT") ao_uid=$(id -u "$AO")
echo "$AO:*:$ao_uid:$ao_uid::0:0:agent:/tmp:/bin/sh" >>"$root/etc/master.passwd"
pwd_mkdb -p -d "$root/etc" "$root/etc/master.passwd" || bail "cannot extend the user table of the jail"

# Copies a program and its libraries into the jail.
into_root() {
    rm -f "$root/bin/${1##*/}"
    cp "$1" "$root/bin/" || bail "cannot copy $1"
    for library in $(ldd -f '%p\n' "$1" 2>/dev/null | grep '^/'); do
        [ -e "$root/lib/${library##*/}" ] || cp "$library" "$root/lib/" || bail "cannot copy $library"
    done
}
for program in "$work/bin/attack" /usr/bin/mdo /usr/sbin/jail /usr/sbin/jexec /sbin/kldload /usr/bin/proccontrol; do
    into_root "$program"
done
for program in chroot cp hostname mkdir mount mount_nullfs sysctl; do
    ln -f "$root/bin/sh" "$root/bin/$program"
done
into_root /usr/bin/id
mv "$root/bin/id" "$root/bin/root-id"
chmod 4755 "$root/bin/root-id"
ln "$root/bin/sh" "$root/bin/id"

# A small root: sh, ls and id.
small_root() {
    mkdir -p "$1/bin" "$1/etc" "$1/tmp"
    cp "$root/bin/sh" "$1/bin/sh"
    for program in cat id ls sleep; do
        ln "$1/bin/sh" "$1/bin/$program"
    done
    good_table >"$1/etc/passwd"
    touch "$1/inside"
}
good_table() { printf '%s:*:%s:%s:agent:/tmp:/bin/sh\n' "$AG" "$ag_uid" "$ag_uid" "$AO" "$ao_uid" "$ao_uid"; }
mkdir "$tree"
small_root "$tree/own"
chown -R "$OT" "$tree/own"
small_root "$tree/r"
install -d -o "$AG" "$root/made"
install -d -o "$OP" "$root/socket"
small_root "$work/outside"
rm "$work/outside/inside"
touch "$work/outside/escaped"
ln -s "$work/outside" "$tree/link"
ln -s / "$tree/host"
touch "$tree/file"
chown -h "$OT" "$tree" "$tree/link" "$tree/host" "$tree/file"

cat >>"$POLICY" <<POLICY_TEXT || bail "cannot extend the policy"

[[rule]]
callers = ["$OT"]
jails = ["colibri-*", "$JAIL"]
roots = ["$tree/*"]
users = ["$AO", "root", "toor", "$ao_uid:$ao_uid"]
programs = ["*"]
ip4 = ["disable"]
environment = ["*"]
signals = ["TERM", "KILL"]

[rule.limits]
agents = 3

[[rule]]
callers = ["$OT"]
jails = ["colibri-*", "$JAIL"]
roots = ["$root"]
users = ["$AO"]
programs = ["/bin/echo", "/usr/bin/echo"]
ip4 = ["disable"]
signals = ["TERM", "KILL"]

[[rule]]
callers = ["$OP"]
jails = ["colibri-*"]
roots = ["$root/made/*"]
users = ["$AG"]
programs = ["*"]
ip4 = ["disable"]
POLICY_TEXT
jail -q -c name="$CLOSED" path="$root" ip4=disable persist || bail "cannot create jail $CLOSED"

# ---- tools -----------------------------------------------------------------------------------------------

# attack DESCRIPTION COMMAND [ARG…]: an attempt, after which nothing of an agent is left.
attack() {
    what=$1
    shift
    check "attack: $what" attempt "$@"
}
attempt() {
    "$@"
    answer=$?
    eventually nothing_remains || {
        echo 'remains:' >>"$out"
        { jls name; pgrep -lf "$H (create|attach|check)"; pgrep -lf -U "$ag_uid,$ao_uid" .; } >>"$out"
        remove_remains
        return 1
    }
    return "$answer"
}
nothing_remains() {
    ! jls name | grep -q '^colibri-' && ! pgrep -f "^$H (create|attach|check)" >"$noise" && ! pgrep -U "$ag_uid,$ao_uid" >"$noise"
}
remove_remains() {
    for jail in $(jls name | grep '^colibri-'); do
        jail -R "$jail"
    done
    pkill -KILL -f "^$H "
    pkill -KILL -U "$ag_uid,$ao_uid"
}

op() { as "$OP" GIVEN=secret "$H" "$@"; }
ot() { as "$OT" GIVEN=secret "$H" "$@"; }
# Runs a script as the first caller; $0 is the helper.
op_sh() { as "$OP" GIVEN=secret /bin/sh -c "$1" "$H"; }
# An agent of the first caller, and of the other caller in a root of its tree.
agent_op() { op create --jail "$name" --path "$root" --ip4 disable --user "$AG" -- "$@"; }
agent_ot() { ot create --jail "$name" --path "$tree/r" --ip4 disable --user "$AO" -- "$@"; }
request="create --jail colibri-cbrt --path $root --ip4 disable --user $AG --"
name=colibri-cbrt

# A refusal with any of the helper's exit codes, or a program that did not start.
any_refusal() { run "$@"; [ "$code" = 64 ] || [ "$code" = 71 ] || [ "$code" = 77 ]; }
# The command fails and its output does not contain "escaped".
fails() { run "$@"; ! exits 0 && ! stdout_has escaped; }
# The agent runs unharmed and prints "ran".
unharmed() { run "$@"; exits 0 && [ "$(cat "$out")" = ran ]; }
# A command inside of a jail fails, after which the agent still runs.
inside() { run agent_op /bin/sh -c "$1 && echo escaped; echo ran"; exits 0 && stdout_has '^ran$' && ! stdout_has escaped; }

# Finds the sleep itself, not a helper or shell whose arguments contain it.
agent_runs() { agent=$(pgrep -f "^(/bin/)?sleep $sleeps\$"); }
# Starts an agent in the background that sleeps until end_agent. $agent is its pid, $monitor its monitor's.
with_agent() {
    next_tag
    "$@" /bin/sleep "$sleeps" >"$noise" 2>&1 </dev/null &
    job=$!
    eventually agent_runs || return 1
    monitor=$(pgrep -f "^$H (create|attach) .*sleep $sleeps")
}
end_agent() {
    kill -KILL $agent
    wait "$job"
}
# Runs a check while an agent of the first caller runs, which must survive it.
beside_agent() {
    with_agent agent_op || return 1
    "$@"
    beside=$?
    runs "$sleeps" && kill -0 "$monitor"
    survived=$?
    end_agent
    [ "$beside" = 0 ] && [ "$survived" = 0 ]
}
# The same with an agent of the other caller.
beside_other() {
    with_agent agent_ot || return 1
    "$@"
    beside=$?
    runs "$sleeps"
    survived=$?
    end_agent
    [ "$beside" = 0 ] && [ "$survived" = 0 ]
}

unharmed agent_op /bin/echo ran || bail "the helper does not start an agent: $(cat "$err")"
unharmed agent_ot /bin/sh -c 'echo ran' || bail "the helper does not start the other caller's agent: $(cat "$err")"
unharmed ot create --jail "$name" --path "$tree/own" --ip4 disable --user "$ao_uid:$ao_uid" -- /bin/sh -c 'echo ran' ||
    bail "the helper does not start an agent with a number as its user: $(cat "$err")"

# ---- arguments -------------------------------------------------------------------------------------------

long=$(jot -b x -s '' 10000)
many_pids() { refused 64 op signal --signal KILL $(jot -w '--pid %d' 1025 100); }
escapes() {
    refused 64 op create --jail colibri-cbrt --path "/$(printf 'a\nb\033[2J')" --ip4 disable -- sh &&
        ! LC_ALL=C grep -q '[^ -~]' "$err"
}

attack 'arguments: none' refused 64 op
attack 'arguments: a command line instead of a verb' refused 64 op /bin/sh -c id
attack 'arguments: a value after =' refused 64 op attach --jail="$JAIL" -- sh
attack 'arguments: a repeated option' refused 64 op attach --jail "$JAIL" --jail "$CLOSED" -- sh
attack 'arguments: another order' refused 64 op attach --user "$AG" --jail "$JAIL" -- sh
attack 'arguments: an option of another verb' refused 64 op attach --jail "$JAIL" --path / -- sh
attack 'arguments: no --' refused 64 op attach --jail "$JAIL" sh
attack 'arguments: an empty program' refused 64 op attach --jail "$JAIL" -- ''
attack 'arguments: bytes that are not UTF-8' refused 64 op attach --jail "$(printf '\377\376')" -- sh
attack 'arguments: a jail name of 10000 bytes' refused 64 op attach --jail "$long" -- sh
attack 'arguments: a path of 10000 bytes' refused 64 op create --jail colibri-cbrt --path "/$long" --ip4 disable -- sh
attack 'arguments: 1025 process ids' many_pids
attack 'arguments: line breaks and escape sequences reach no message' escapes
attack 'arguments: an empty argv[0]' refused 71 as "$OP" "$work/bin/attack" unnamed "$H" check
attack 'arguments: --hide, which only Linux has' refused 71 op create --jail colibri-cbrt --path "$root" --ip4 disable --hide /etc -- sh
attack 'arguments: a working directory outside by ..' refused 64 op create --jail colibri-cbrt --path "$root" --ip4 disable --workdir /tmp/../.. -- sh

# ---- environment -----------------------------------------------------------------------------------------

with_variable() { unharmed as "$OP" "$@" "$H" $request /bin/echo ran; }
mkdir "$work/libraries" "$work/own"
touch "$work/libraries/libc.so.7" "$work/libraries/libthr.so.3" "$work/libraries/libgcc_s.so.1"
printf '[[rule]]\ncallers = ["%s"]\njails = ["*"]\nusers = ["%s"]\nprograms = ["*"]\n' "$OP" "$AG" >"$work/own/helper.toml"
# All variables of the policy's "*" but these pass.
forbidden_variables() {
    run as "$OT" LD_PRELOAD=/x LD_LIBRARY_PATH=/x ENV=/x BASH_ENV=/x IFS=/ COLIBRI_CONTROL_FD=9 MALLOC_CONF=x PASSES=yes HOME=/x USER=x \
        "$H" create --jail colibri-cbrt --path "$tree/r" --ip4 disable -- /bin/sh -c 'set'
    stdout_has '^PASSES=' && stdout_has "^USER='*$AO" && ! grep -Eq '^(LD_|ENV=|BASH_ENV|COLIBRI_|MALLOC_)|/x' "$out"
}
# A descriptor from 3 up that is not a socket is not written to.
control_file() {
    : >"$work/control"
    chmod 666 "$work/control"
    unharmed op_sh "COLIBRI_CONTROL_FD=3 exec \"\$0\" $request /bin/echo ran 3<>$work/control" && [ ! -s "$work/control" ]
}
control_pipe() { run op_sh "{ COLIBRI_CONTROL_FD=3 \"\$0\" $request /bin/echo ran 3>&1 >&2; } | cat"; stderr_has '^ran$' && [ ! -s "$out" ]; }
control_number() {
    for number_of in 0 1 2 -1 3.0 99999999999 2147483647 0x3 '3 '; do
        with_variable COLIBRI_CONTROL_FD="$number_of" || return 1
    done
}

attack 'environment: LD_PRELOAD of a missing library' with_variable LD_PRELOAD="$work/none.so"
attack 'environment: LD_LIBRARY_PATH with broken libraries' with_variable LD_LIBRARY_PATH="$work/libraries"
attack 'environment: LD_ELF_HINTS_PATH and LD_LIBRARY_PATH_FDS' with_variable LD_ELF_HINTS_PATH="$work/none" LD_LIBRARY_PATH_FDS=0:1
attack 'environment: LD_LIBMAP' with_variable LD_LIBMAP="libc.so.7 $work/libraries/libc.so.7"
attack 'environment: forbidden variables do not pass a rule with *' forbidden_variables
attack 'environment: a policy of the caller' refused 77 as "$OP" COLIBRI_HELPER_PREFIX="$work/own" "$H" attach --jail "$CLOSED" -- sh
attack 'environment: COLIBRI_CONTROL_FD names 0 to 2, or no descriptor' control_number
attack 'environment: COLIBRI_CONTROL_FD names a file' control_file
attack 'environment: COLIBRI_CONTROL_FD names a pipe' control_pipe
attack 'environment: COLIBRI_CONTROL_FD names a directory' unharmed op_sh "COLIBRI_CONTROL_FD=3 exec \"\$0\" $request /bin/echo ran 3</"

# ---- descriptors -----------------------------------------------------------------------------------------

# The helper refuses, or the kernel opened /dev/null instead.
closed() { run op_sh "exec \"\$0\" $request /bin/sh -c 'echo ran' $1"; exits 71 || { exits 0 && ! stdout_has escaped; }; }
only_stdio() {
    next_tag
    op_sh "exec \"\$0\" $request /bin/sleep $sleeps 3</ 4</etc 5</dev/null 6</etc/passwd 7</ 8</ 9</tmp" >"$noise" 2>&1 </dev/null &
    job=$!
    eventually agent_runs
    procstat -f "$agent" >"$out" 2>"$err"
    end_agent
    stdout_has ' 2 ' && ! awk 'NR > 1 { print $3 }' "$out" | grep -Eqv '^(0|1|2|text|cwd|root|jail)$'
}
entered_stdio() {
    next_tag
    as "$OP" "$H" attach --jail "$JAIL" -- /bin/sleep "$sleeps" >"$noise" 2>&1 </dev/null &
    job=$!
    eventually agent_runs
    procstat -f "$agent" >"$out" 2>"$err"
    end_agent
    stdout_has ' 2 ' && ! awk 'NR > 1 { print $3 }' "$out" | grep -Eqv '^(0|1|2|text|cwd|root|jail)$'
}

attack 'descriptors: 0 is closed' closed '<&-'
attack 'descriptors: 1 is closed' closed '>&-'
attack 'descriptors: 0 to 2 are closed' closed '<&- >&- 2>&-'
attack 'descriptors: 0 is a directory outside' any_refusal op_sh "exec \"\$0\" $request /bin/cat </"
attack 'descriptors: 1 is a directory outside' any_refusal op_sh "exec \"\$0\" $request /bin/cat 1</"
attack 'descriptors: 2 is a directory outside' any_refusal op_sh "exec \"\$0\" $request /bin/cat 2</"
attack 'descriptors: 0 is write-only' any_refusal op_sh "exec \"\$0\" $request /bin/cat 0>/dev/null"
attack 'descriptors: 1 is read-only' any_refusal op_sh "exec \"\$0\" $request /bin/cat 1</dev/null"
attack 'descriptors: 3 to 9 are directories and files of the host' only_stdio
attack 'descriptors: an agent in a persistent jail has only 0 to 2' entered_stdio
attack 'descriptors: a passed directory does not lead out by ..' \
    fails as "$OP" "$work/bin/attack" pass "$work/own" "$root/socket/s" "$H" $request /bin/attack receive /socket/s ../libraries/libc.so.7
attack 'descriptors: the caller enters a jail by a jail descriptor' fails as "$OP" "$work/bin/attack" jail "$JAIL"

# ---- resource limits --------------------------------------------------------------------------------------

# The agent runs with the policy's limits, or the program does not start at all.
limited_by() { run as "$OP" limits "$@" "$H" $request /bin/echo ran; ! exits 0 || stdout_has '^ran$'; }
limited_size() { unharmed as "$OP" limits -H -S -f 0 "$H" $request /bin/sh -c '[ "$(ulimit -f)" = unlimited ] && echo ran'; }
limited_time() { unharmed as "$OP" limits -H -S -t 1 "$H" $request /bin/sh -c '[ "$(ulimit -t)" = unlimited ] && sleep 2 && echo ran'; }

attack 'limits: no file may grow' limited_size
attack 'limits: one second of processor time' limited_time
attack 'limits: 4 open files' limited_by -H -S -n 4
attack 'limits: no open file' limited_by -H -S -n 0
attack 'limits: one process' limited_by -H -S -u 1
attack 'limits: little memory' limited_by -H -S -v 30m
attack 'limits: small stack' limited_by -H -S -s 64k
attack 'limits: no socket buffer, kernel queue or pipe buffer' limited_by -H -S -b 0 -k 0
attack 'limits: core files' unharmed as "$OP" limits -H -S -c unlimited "$H" $request /bin/sh -c '[ "$(ulimit -c)" = 0 ] && echo ran'

# ---- signals, debuggers and reapers of the caller -----------------------------------------------------------

all_signals() {
    for signal in HUP INT QUIT ILL TRAP ABRT EMT FPE KILL BUS SEGV SYS PIPE ALRM TERM URG STOP TSTP CONT CHLD TTIN TTOU IO \
        XCPU XFSZ VTALRM PROF WINCH INFO USR1 USR2; do
        ! as "$OP" kill -s "$signal" "$monitor" 2>"$noise" || return 1
        ! as "$OP" kill -s "$signal" "$agent" 2>"$noise" || return 1
    done
}
# The caller signals the helper at ever later moments of its start. A stopped helper holds nothing that others need.
early_signal() {
    for moment in 0 0.01 0.02 0.03 0.05 0.07 0.1 0.15 0.2 0.3; do
        op_sh "\"\$0\" $request /bin/echo ran >$noise 2>&1 & p=\$!; sleep $moment; kill -s $1 \$p; sleep 0.2; [ $1 != STOP ] || kill -9 \$p; wait" \
            >"$noise" 2>&1
    done
    unharmed agent_op /bin/echo ran
}
ignored_signals() {
    unharmed op_sh "trap '' TERM HUP INT CHLD PIPE ALRM USR1; exec \"\$0\" $request /bin/sh -c 'kill -TERM \$\$; echo escaped' || :" ||
        { ! stdout_has escaped; }
}
denied() { fails as "$OP" "$@"; }
monitor_is() { denied "$@" "$monitor"; }
debug_monitor() { monitor_is truss -o "$noise" -p; }
trace_monitor() { monitor_is ktrace -f /tmp/ktrace.out -p; }
control_monitor() { monitor_is proccontrol -m trace -s disable -p; }
environment_of_monitor() { run as "$OP" procstat -e "$monitor" "$agent"; ! stdout_has GIVEN; }
memory_of_monitor() { fails as "$OP" dd if="/proc/$monitor/mem" bs=1 count=1 && fails as "$OP" cat "/proc/$monitor/map"; }
priority_of_monitor() { monitor_is renice -n 20 -p && monitor_is protect -p; }
traced_start() {
    run as "$OP" ktrace -i -f /tmp/ktrace.out "$H" check
    [ ! -e /tmp/ktrace.out ] || ! kdump -f /tmp/ktrace.out | grep -q 'roots = '
    traced=$?
    rm -f /tmp/ktrace.out
    [ "$traced" = 0 ]
}
# truss(1) may not report the exit code.
traced_by_truss() {
    run as "$OP" truss -o /tmp/truss.out "$H" check
    rm -f /tmp/truss.out
    stderr_has 'not setuid root' && [ ! -s "$out" ]
}
reaped() {
    run as "$OP" "$work/bin/attack" reap "$H" $request /bin/sh -c 'sleep 8; echo ran'
    exits 0 && stdout_has '^ran$'
}

attack 'signals: all of the caller to the monitor and the agent' beside_agent all_signals
attack 'signals: KILL during the start' early_signal KILL
attack 'signals: TERM during the start' early_signal TERM
attack 'signals: STOP during the start' early_signal STOP
attack 'signals: ALRM during the start' early_signal ALRM
attack 'signals: ignored ones are not inherited' ignored_signals
attack 'debugger: truss of the helper runs it without rights' traced_by_truss
attack 'debugger: ktrace of the helper records no policy' traced_start
attack 'debugger: no_new_privs runs the helper without rights' refused 71 as "$OP" proccontrol -m nonewprivs -s enable "$H" check
attack 'debugger: truss of the monitor' beside_agent debug_monitor
attack 'debugger: ktrace of the monitor' beside_agent trace_monitor
attack 'debugger: procctl of the monitor' beside_agent control_monitor
attack 'debugger: environment of the monitor and the agent' beside_agent environment_of_monitor
attack 'debugger: memory of the monitor' beside_agent memory_of_monitor
attack 'debugger: priority and protection of the monitor' beside_agent priority_of_monitor
attack 'reaper: PROC_REAP_KILL of the caller' reaped

# ---- paths and the user table ---------------------------------------------------------------------------------

create_at() { op create --jail colibri-cbrt --path "$1" --ip4 disable --user "$AG" -- /bin/sh -c 'echo escaped'; }
create_in_tree() { ot create --jail colibri-cbrt --path "$1" --ip4 disable --user "$AO" -- /bin/sh -c '[ -e /inside ] || echo escaped'; }
# The caller replaces the root by a link while the helper opens it.
raced_root() {
    as "$OT" /bin/sh -c "cd $tree; mv r real; i=0; while [ \$i -lt 4000 ] && [ ! -e stop ]; do
        ln -s real r; rm r; ln -s $work/outside r; rm r; mv real r; mv r real; i=\$((i + 1)); done" >"$noise" 2>&1 &
    race=$!
    : >"$work/raced"
    for round in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        name=colibri-race$round
        agent_ot /bin/sh -c 'echo /*' >>"$work/raced" 2>&1 </dev/null
    done
    name=colibri-cbrt
    touch "$tree/stop"
    wait "$race"
    rm "$tree/stop"
    [ -d "$tree/r" ] || mv "$tree/real" "$tree/r"
    cat "$work/raced" >"$out"
    ! stdout_has escaped
}
# An agent is refused with the user table that the commands make, as root or as the caller.
with_table() {
    rm -rf "$tree/r/etc"
    mkdir "$tree/r/etc"
    (cd "$tree/r/etc" && eval "$1") || return 1
    run timeout 20 su "$OT" -c '"$@"; exit $?' sh "$H" create --jail colibri-cbrt --path "$tree/r" --ip4 disable --user "$AO" -- \
        /bin/sh -c 'echo "escaped as $(id -u)"'
    rm -rf "$tree/r/etc"
    mkdir "$tree/r/etc"
    good_table >"$tree/r/etc/passwd"
    chown root:wheel "$tree/r"
    chmod 755 "$tree/r"
    exits 71 && ! stdout_has escaped
}
foreign_table() { with_table "good_table >passwd; $1" && stderr_has "look up user $AO"; }
# The ids that the table of a root of the caller has.
own_table() {
    echo "$AO:*:$1::/:/bin/sh" >"$tree/own/etc/passwd"
    refused 71 ot create --jail colibri-cbrt --path "$tree/own" --ip4 disable --user "$AO" -- /bin/sh -c 'echo "escaped as $(id)"'
    owned=$?
    good_table >"$tree/own/etc/passwd"
    [ "$owned" = 0 ] && stderr_has 'belongs to uid'
}
# An agent makes a root with a table in a directory that a rule lists with /*.
made_table() {
    run agent_op /bin/sh -c "mkdir -p /made/r/bin /made/r/etc /made/r/tmp && cp /bin/sh /made/r/bin/sh && echo '$AG:*:$1::/:/bin/sh' >/made/r/etc/passwd"
    exits 0 && refused 71 op create --jail colibri-cbrt --path "$root/made/r" --ip4 disable --user "$AG" -- /bin/sh -c 'echo escaped'
    made=$?
    rm -rf "$root/made/r"
    [ "$made" = 0 ] && stderr_has 'belongs to uid'
}
# The caller exchanges the root of root by its own, whose table has the gid of operator.
raced_table() {
    echo "$AO:*:$ao_uid:5::/:/bin/sh" >"$tree/own/etc/passwd"
    as "$OT" /bin/sh -c "cd $tree; i=0; while [ \$i -lt 3000 ] && [ ! -e stop ]; do
        mv r real; mv own r; mv r own; mv real r; i=\$((i + 1)); done" >"$noise" 2>&1 &
    race=$!
    : >"$work/raced"
    for round in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        agent_ot /bin/sh -c 'echo "gid=$(id -g)"' >>"$work/raced" 2>&1 </dev/null
    done
    touch "$tree/stop"
    wait "$race"
    rm "$tree/stop"
    good_table >"$tree/own/etc/passwd"
    cat "$work/raced" >"$out"
    ! stdout_has 'gid=5'
}

attack 'path: a directory that no rule has' refused 77 create_at /
attack 'path: below an exact root' refused 77 create_at "$root/tmp"
attack 'path: above a root' refused 77 create_at "$work"
attack 'path: beside a root with the same beginning' refused 77 create_at "${root}2"
attack 'path: .. out of a root' refused 64 create_at "$root/../outside"
attack 'path: a final slash' refused 64 create_at "$root/"
attack 'path: doubled slashes' refused 64 create_at "//$root"
attack 'path: relative' refused 64 create_at root
attack 'path: a link to the root directory of the host' refused 71 create_in_tree "$tree/host"
attack 'path: below a link' refused 71 create_in_tree "$tree/host/rescue"
attack 'path: a file' refused 71 create_in_tree "$tree/file"
attack 'path: a missing directory' refused 71 create_in_tree "$tree/none"
attack 'path: the tree itself' refused 77 create_in_tree "$tree"
attack 'path: replaced by links during the start' raced_root
attack 'user table: a FIFO' with_table 'mkfifo passwd'
attack 'user table: a directory' with_table 'mkdir passwd'
attack 'user table: a sparse file of 1 TB' with_table 'good_table >passwd; truncate -s 1t passwd'
attack 'user table: a link to the table of the host' with_table 'ln -s /etc/passwd passwd'
attack 'user table: its directory is a link' with_table 'mv ../etc ../etc2; good_table >../etc2/passwd; ln -s etc2 ../etc; cd /'
attack 'user table: a device' with_table 'ln /dev/zero passwd 2>/dev/null || mknod passwd c 1 1 2>/dev/null || ln -s /dev/zero passwd'
attack 'user table: the user has uid 0' with_table 'echo "$AO:*:0:0::/:/bin/sh" >passwd'
attack 'user table: the user has uid +0' with_table 'echo "$AO:*:+0:0::/:/bin/sh" >passwd'
attack 'user table: the user has uid -1' with_table 'echo "$AO:*:-1:0::/:/bin/sh" >passwd'
attack 'user table: the user has uid 4294967295' with_table 'echo "$AO:*:4294967295:1::/:/bin/sh" >passwd'
attack 'user table: the user has uid 4294967296' with_table 'echo "$AO:*:4294967296:1::/:/bin/sh" >passwd'
attack 'user table: the user has gid 4294967295' with_table 'echo "$AO:*:$ao_uid:4294967295::/:/bin/sh" >passwd'
attack 'user table: bytes that are not UTF-8' with_table 'printf "\377\n" >passwd; good_table >>passwd'
attack 'user table: the user has gid 0' with_table 'echo "$AO:*:$ao_uid:0::/:/bin/sh" >passwd'
attack 'user table: the user has the gid of kmem' with_table 'echo "$AO:*:$ao_uid:2::/:/bin/sh" >passwd'
attack 'user table: the user has the gid of operator' with_table 'echo "$AO:*:$ao_uid:5::/:/bin/sh" >passwd'
attack 'user table: of the caller, with the gid of operator' own_table "$ao_uid:5"
attack 'user table: of the caller, with the gid of games' own_table "$ao_uid:13"
attack 'user table: of the caller, with the uid of another caller' own_table "$op_uid:$op_uid"
attack 'user table: of an agent, with the gid of operator' made_table "$ag_uid:5"
attack 'user table: of an agent, with the uid of its caller' made_table "$op_uid:$op_uid"
attack 'user table: the caller owns the file' foreign_table 'chown "$OT" passwd'
attack 'user table: the caller owns its directory' foreign_table 'chown "$OT" .'
attack 'user table: the caller owns the root directory' foreign_table 'chown "$OT" ..'
attack 'user table: a group can write the file' foreign_table 'chmod 664 passwd'
attack 'user table: others can write the root directory' foreign_table 'chmod 1777 ..'
attack 'user table: replaced during the start' raced_table

# ---- jails, users, programs, addresses -------------------------------------------------------------------------

attach_to() { op attach --jail "$1" --user "$AG" -- /bin/sh -c 'echo escaped'; }
create_as() { op create --jail colibri-cbrt --path "$root" --ip4 disable --user "$1" -- /bin/sh -c 'echo escaped'; }
create_with() { op create --jail colibri-cbrt --path "$root" --ip4 "$1" --user "$AG" -- /bin/sh -c 'echo escaped'; }
create_named_as() { op create --jail "$1" --path "$root" --ip4 disable --user "$AG" -- /bin/sh -c 'echo escaped'; }
restricted() { ot create --jail colibri-cbrt --path "$root" --ip4 disable --user "$AO" -- "$@"; }
name_in_use() { name=colibri-taken; beside_other refused 71 create_named_as colibri-taken; named=$?; name=colibri-cbrt; return $named; }
alias_of_root() {
    echo 'toor:*:0:0::/:/bin/sh' >>"$tree/r/etc/passwd"
    refused 71 ot create --jail colibri-cbrt --path "$tree/r" --ip4 disable --user toor -- /bin/id
}
echo 'echo escaped' >"$root/tmp/script"
printf '#!/bin/echo\n' >"$root/tmp/interpreted"
chmod 755 "$root/tmp/script" "$root/tmp/interpreted"
ln -s /bin/sh "$root/tmp/echo"
mkdir "$root/tmp/bin"
ln "$root/bin/sh" "$root/tmp/bin/echo"
by_path() { run as "$OT" PATH=/tmp/bin:/tmp "$H" create --jail colibri-cbrt --path "$root" --ip4 disable --user "$AO" -- echo -c 'echo escaped'; ! stdout_has '^escaped'; }

attack 'jail: of root, which no rule lists' refused 77 attach_to "$CLOSED"
attack 'jail: missing, which no rule lists' refused 77 attach_to cbrtnone
attack 'jail: by its id' refused 64 attach_to "$(jls -j "$JAIL" jid)"
attack 'jail: id 0, the host' refused 64 attach_to 0
attack 'jail: a child of a listed one' refused 64 attach_to "$JAIL.x"
attack 'jail: a listed one as a child' refused 64 attach_to "x.$JAIL"
attack 'jail: an option as its name' refused 64 attach_to --user
attack 'jail: a path as its name' refused 64 attach_to "../$JAIL"
attack 'jail: entering a created one' refused 64 attach_to colibri-cbrt
attack 'jail: creating one with the name of a persistent one' refused 64 create_named_as "$JAIL"
attack 'jail: creating one with a name in use by the other caller' name_in_use
attack 'jail: creating a child' refused 64 create_named_as colibri-cbrt.x
attack 'jail: jail(8), jexec(8) and jail -r by the caller' fails as "$OP" sh -c "jail -c path=/ command=/bin/echo escaped || jexec $JAIL /bin/echo escaped || jail -R $JAIL"
attack 'user: root' refused 77 create_as root
attack 'user: toor' refused 77 create_as toor
attack 'user: root, although a rule lists it' refused 77 ot create --jail colibri-cbrt --path "$tree/r" --ip4 disable --user root -- /bin/id
attack 'user: an alias of root, although a rule lists it' alias_of_root
attack 'user: uid 0' refused 77 create_as 0
attack 'user: uid -1' refused 64 create_as -1
attack 'user: uid 4294967295' refused 64 create_as 4294967295
attack 'user: uid 4294967296' refused 64 create_as 4294967296
attack 'user: the caller' refused 77 create_as "$OP"
attack 'user: the number of a listed one' refused 77 create_as "$ag_uid"
attack 'user: a listed one with gid 0' refused 77 create_as "$ag_uid:0"
attack 'user: a shell command' refused 64 create_as '$(id)'
attack 'unlisted user: check' refused 77 as "$AG" "$H" check
attack 'unlisted user: a request of a listed one' refused 77 as "$AG" USER="$OP" LOGNAME="$OP" SUDO_UID="$op_uid" "$H" $request /bin/echo escaped
attack 'program: not listed' refused 77 restricted /bin/sh -c 'echo escaped'
attack 'program: a link to a program, with a listed name' refused 77 restricted /tmp/echo -c 'echo escaped'
attack 'program: a script whose interpreter is listed' refused 77 restricted /tmp/interpreted
attack 'program: .. after a listed directory' refused 64 restricted /bin/../tmp/echo
attack 'program: doubled slashes' refused 64 restricted /bin//echo
attack 'program: relative' refused 64 restricted ./echo
attack 'program: a name in the PATH of the caller' by_path
attack 'ip4: an address that no rule lists' refused 77 create_with 127.0.0.1
attack 'ip4: all addresses' refused 64 create_with 0.0.0.0,0.0.0.0/0
attack 'ip4: new' refused 77 create_with new
attack 'ip4: two modes' refused 64 create_with disable,inherit
attack 'ip4: a further jail parameter' refused 64 create_with 'disable allow.mount=1'

# ---- signal and remove --------------------------------------------------------------------------------------

signal_to() { op signal --signal KILL --pid "$1"; }
signal_agent() { refused 77 signal_to "$agent"; }
signal_agent_in() { refused 77 op signal --jail "$name" --signal KILL --pid "$agent"; }
signal_monitor() { refused 77 signal_to "$monitor" && refused 77 op signal --jail "$name" --signal KILL --pid "$monitor"; }
signal_both() { refused 77 op signal --signal KILL --pid "$agent" --pid $$; }
remove_other() { refused 77 op remove --jail "$name"; }
remove_twice() {
    refused 77 op remove --jail "$name" && sed "s/$name/NAME/" "$err" >"$work/first" &&
        refused 77 op remove --jail colibri-none && sed "s/colibri-none/NAME/" "$err" | cmp -s - "$work/first"
}
# The monitor's requester is a reaper of root, whose descendants include a process of root in the jail.
foreign_reaper() {
    next_tag
    "$work/bin/attack" adopt "$op_uid" "$JAIL" "${sleeps}7" "$H" attach --jail "$JAIL" --user "$AG" -- /bin/sleep "$sleeps" >"$noise" 2>&1 </dev/null &
    job=$!
    eventually agent_runs && victim=$(pgrep -f "^/bin/sleep ${sleeps}7\$") && refused 77 signal_to "$victim" && runs "${sleeps}7" &&
        run signal_to "$agent" && exits 0
    foreign=$?
    pkill -KILL -f "^/bin/sleep ${sleeps}7\$"
    wait "$job"
    return "$foreign"
}
# The monitor ends after another jail got the name of its jail.
later_jail() {
    with_agent agent_op || return 1
    kill -STOP "$monitor"
    jail -R "$name"
    jail -q -c name="$name" path="$root" ip4=disable persist
    later=$?
    kill -CONT "$monitor"
    eventually monitor_gone
    [ "$later" = 0 ] && jail_there "$name"
    later=$?
    jail -R "$name"
    wait "$job"
    return "$later"
}
monitor_gone() { ! pgrep -f "^$H (create|attach)" >"$noise"; }
# A record whose pid belongs to a later process: the start time differs.
reused_pid() {
    next_tag
    as "$OP" "$H" attach --jail "$JAIL" -- /bin/sleep "$sleeps" >"$noise" 2>&1 </dev/null &
    job=$!
    eventually agent_runs
    sed -i '' 's/^start=.*/start=1/' "$RECORDS/$op_uid/@$agent" && refused 77 signal_to "$agent" && runs "$sleeps"
    reused=$?
    end_agent
    return "$reused"
}
signals_of_policy() {
    refused 77 op signal --signal STOP --pid "$agent" && refused 64 op signal --signal 9 --pid "$agent" &&
        refused 64 op signal --signal 0 --pid "$agent" && refused 64 op signal --signal SIGKILL --pid "$agent"
}

attack 'signal: init' refused 64 signal_to 1
attack 'signal: every process' refused 64 signal_to -1
attack 'signal: the process group' refused 64 signal_to 0
attack 'signal: syslogd' refused 77 signal_to "$(pgrep -o syslogd)"
attack 'signal: a kernel process' refused 77 signal_to "$(pgrep -S -o bufdaemon)"
attack 'signal: a process of the caller outside of any agent' refused 77 op_sh 'exec "$0" signal --signal KILL --pid $PPID'
attack 'signal: a missing process' refused 77 signal_to 99998
attack 'signal: a pid that overflows' refused 64 signal_to 4294967298
attack 'signal: an agent of the other caller' beside_other signal_agent
attack 'signal: an agent of the other caller, with its jail' beside_other signal_agent_in
attack 'signal: the monitor of the own agent' beside_agent signal_monitor
attack 'signal: the own agent and a process of root' beside_agent signal_both
attack 'signal: names and numbers that no rule lists' beside_agent signals_of_policy
attack 'signal: a reused pid' reused_pid
attack 'signal: a process of root below a reaper of root that requested an agent' foreign_reaper
attack 'remove: a jail of the other caller, answered as if it was missing' beside_other remove_twice
attack 'remove: a jail of the other caller' beside_other remove_other
attack 'remove: a persistent jail' refused 77 op remove --jail "$JAIL"
attack 'remove: a path' refused 64 op remove --jail ../colibri-helper
attack 'remove: the lock' refused 77 op remove --jail lock
attack 'remove: the end of an agent, a later jail of the same name' later_jail
attack 'root only: monitor' refused 77 op monitor -- /bin/sh -c 'echo escaped'
attack 'root only: monitor of a jail' refused 77 op monitor --jail colibri-cbrt --setup-commands 0 --root "$root" --mount / /mnt -- /usr/sbin/jail -c path=/ command=/bin/echo escaped
attack 'root only: clean' refused 77 op clean --jail colibri-cbrt --root "$root" --devfs /dev

attack 'root only: await-proxy' refused 77 op await-proxy --jail colibri-cbrt

# ---- the filtered network --------------------------------------------------------------------------------------

filtered="create --jail colibri-cbrt --path $root --ip4 disable --network filtered --user $AG --"
proxy_file() {
    : >"$work/control"
    chmod 666 "$work/control"
    refused 71 op_sh "COLIBRI_PROXY_FD=3 exec \"\$0\" $filtered /bin/echo ran 3<>$work/control" && [ ! -s "$work/control" ]
}

# shellcheck disable=SC2086 # words
attack 'network: filtered, without a proxy' refused 71 op $filtered /bin/echo ran
attack 'network: filtered, and a file as the proxy' proxy_file
attack 'network: filtered, and an unlisted ip4' refused 64 op create --jail colibri-cbrt --path "$root" --ip4 inherit --network filtered -- sh
attack 'network: another value' refused 64 op create --jail colibri-cbrt --path "$root" --ip4 disable --network none -- sh

# ---- the control socket ----------------------------------------------------------------------------------------

controlled() { run as "$OP" "$work/bin/attack" control "$1" "$H" $request /bin/sh -c "$2"; }
# The end of the agent, and nothing else.
ends_agent() { controlled "$1" "while :; do sleep 1; done"; exits 137; }
ends_itself() { controlled "$1" 'sleep 5; exit 7'; exits 7; }
refuses_stop() { ends_itself 'signal STOP all' && stdout_has '^refused STOP$'; }

attack 'control socket: a signal that no rule lists' refuses_stop
attack 'control socket: garbage ends the agent' ends_agent garbage
attack 'control socket: an endless line ends the agent' ends_agent endless
attack 'control socket: a number as the signal ends the agent' ends_agent 'signal 9 all'
attack 'control socket: another verb ends the agent' ends_agent "remove --jail $JAIL"
attack 'control socket: its end ends the agent' ends_agent close
attack 'control socket: closed for writing before the start' ends_agent shut
attack 'control socket: a flood that is not read' ends_itself flood
attack 'control socket: passed descriptors' ends_itself descriptors
attack 'control socket: the caller makes it blocking' ends_itself blocking

# ---- records -----------------------------------------------------------------------------------------------

records_of_caller() {
    fails as "$OP" ls "$RECORDS" && fails as "$OP" cat "$RECORDS/$op_uid/lock" && fails as "$OP" sh -c "echo >$RECORDS/x" &&
        fails as "$OP" mv "$RECORDS" /var/run/moved && fails as "$OP" rm -rf "$RECORDS" && fails as "$OP" ln -s /tmp /var/run/colibri-helper.new
    [ -d "$RECORDS" ]
}
# The directory of records is full, or is not root's alone.
full_records() {
    mount -t tmpfs -o "size=64k,mode=700" tmpfs "$RECORDS/$op_uid" && mkdir "$RECORDS/$op_uid/full" || return 1
    dd if=/dev/zero of="$RECORDS/$op_uid/full/fill" bs=4k >"$noise" 2>&1
    i=0
    while [ $i -lt 2000 ] && true >"$RECORDS/$op_uid/full/x$i"; do i=$((i + 1)); done 2>"$noise"
    refused 71 agent_op /bin/echo escaped && [ -z "$(find "$RECORDS/$op_uid" -mindepth 1 -maxdepth 1 ! -name lock ! -name full)" ]
    full=$?
    umount "$RECORDS/$op_uid"
    return "$full"
}
open_records() {
    chmod 777 "$RECORDS"
    refused 71 agent_op /bin/echo escaped
    open=$?
    chmod 700 "$RECORDS"
    return "$open"
}
forge() {
    # A copy under another name, or of another caller, proves nothing.
    cp "$RECORDS/$ot_uid/$name" "$RECORDS/$op_uid/$name"
    refused 77 op remove --jail "$name" && refused 77 op signal --signal KILL --pid "$agent" || return 1
    mv "$RECORDS/$op_uid/$name" "$RECORDS/$op_uid/forged" && sed -i '' "s/^uid=.*/uid=$op_uid/" "$RECORDS/$op_uid/forged"
    refused 77 op remove --jail forged && refused 77 op signal --signal KILL --pid "$agent"
    forged=$?
    rm "$RECORDS/$op_uid/forged"
    return "$forged"
}
# Ids of jails are reused after a boot, so a record of another boot proves nothing.
earlier_boot() {
    sed -i '' 's/^boot=.*/boot=00/' "$RECORDS/$op_uid/$name"
    refused 77 op remove --jail "$name" && refused 77 op signal --signal KILL --pid "$agent"
}
created_at_once() {
    jobs=''
    for one in 1 2 3 4 5 6 7 8 9 10; do
        agent_op /bin/sh -c 'echo ran; sleep 3' >"$work/once.$one" 2>"$work/once-error.$one" </dev/null &
        jobs="$jobs $!"
    done
    wait $jobs
    cat "$work"/once.* >"$out"
    cat "$work"/once-error.* >"$err"
    [ "$(grep -c '^ran$' "$out")" = 1 ] && [ "$(grep -c exists "$err")" = 9 ]
}
# The requester is killed at ever later moments.
requester_killed() {
    round=0
    while [ $round -lt 30 ]; do
        round=$((round + 1))
        next_tag
        op_sh "\"\$0\" create --jail colibri-killed$round --path $root --ip4 disable --user $AG -- /bin/sh -c \"daemon -f sleep $sleeps; sleep $sleeps\" & sleep 0.$((round % 10))$((round / 10)); kill -9 \$\$" \
            >"$noise" 2>&1 </dev/null
    done
    eventually nothing_remains
}

# The parent of the helper is init, which never ends.
requested_by_init() { run as "$OP" "$work/bin/attack" orphan "$H" "$@"; stdout_has '^not started$' && eventually stderr_has 'requested it has ended'; }
# Descriptor 0 of the agent would be the other end of the control socket.
holds_socket() {
    next_tag
    run as "$OP" "$work/bin/attack" outlive "$H" "$@" /bin/sleep "$sleeps"
    stdout_has '^not started$' && eventually stderr_has 'descriptor 0 is a socket'
}
# The caller started a child before it executed the helper.
older_child() {
    next_tag
    op_sh "/bin/sleep $sleeps & exec \"\$0\" $* /bin/echo ran" >"$out" 2>"$err" </dev/null &
    job=$!
    eventually stdout_has '^ran$' && eventually monitor_gone
    older=$?
    runs "$sleeps" || older=1
    pkill -KILL -f "^/bin/sleep $sleeps\$"
    wait "$job"
    return "$older"
}
# The same, and the requester is killed.
older_child_alone() {
    next_tag
    as "$OP" OLDER="${sleeps}7" /bin/sh -c '/bin/sh -c '\''/bin/sleep "$OLDER" & exec "$0" "$@"'\'' "$0" "$@"; :' "$H" "$@" /bin/sleep "$sleeps" \
        >"$noise" 2>&1 </dev/null &
    job=$!
    eventually agent_runs && monitor=$(pgrep -f "^$H (create|attach) .*sleep $sleeps\$") &&
        as "$OP" kill -9 $(ps -o ppid= -p "$monitor") && eventually gone "$sleeps" && eventually monitor_gone && runs "${sleeps}7"
    older=$?
    pkill -KILL -f "^/bin/sleep ${sleeps}7\$"
    wait "$job"
    return "$older"
}
enter="attach --jail $JAIL --user $AG --"

attack 'records: reading and replacing them' records_of_caller
attack 'records: a full file system' full_records
attack 'records: a directory that others can write' open_records
attack 'records: a record under another name' beside_other forge
attack 'records: a record of an earlier boot' beside_agent earlier_boot
attack 'race: ten requests for one name' created_at_once
attack 'race: the requester is killed at 30 moments' requester_killed
attack 'race: the requester is init, created jail' requested_by_init $request /bin/sleep 60
attack 'race: the requester is init, persistent jail' requested_by_init $enter /bin/sleep 60
attack 'descriptors: the control socket as descriptor 0, created jail' holds_socket $request
attack 'descriptors: the control socket as descriptor 0, persistent jail' holds_socket $enter
attack 'race: an older child of the caller, created jail' older_child "$request"
attack 'race: an older child of the caller, persistent jail' older_child "$enter"
attack 'race: an older child of the caller, whose requester is killed, created jail' older_child_alone $request
attack 'race: an older child of the caller, whose requester is killed, persistent jail' older_child_alone $enter

# ---- two callers -----------------------------------------------------------------------------------------------

# A policy whose rules share a user is used for no request.
shared_user() {
    cp -p "$POLICY" "$work/policy"
    printf '\n[[rule]]\ncallers = ["%s"]\nusers = ["%s"]\n' "$OT" "$1" >>"$POLICY"
    refused 71 op check && refused 71 agent_op /bin/echo escaped
    shared=$?
    cp -p "$work/policy" "$POLICY"
    return "$shared"
}
lock_is_held() { ! lockf -kns -t 0 "$RECORDS/$ot_uid/lock" true; }
# A process of the other caller holds its lock for ever; root holds it here.
held_lock() {
    lockf -k "$RECORDS/$ot_uid/lock" sleep 100 &
    holder=$!
    eventually lock_is_held && unharmed agent_op /bin/echo ran && refused 71 agent_ot /bin/sh -c 'echo escaped' && stderr_has 'held the lock for 5 s'
    held=$?
    pkill -KILL -P "$holder"
    wait "$holder"
    return "$held"
}
too_many() {
    next_tag
    jobs=''
    for one in 1 2 3; do
        ot create --jail "colibri-many$one" --path "$tree/r" --ip4 disable --user "$AO" -- /bin/sleep "$sleeps" >"$noise" 2>&1 </dev/null &
        jobs="$jobs $!"
    done
    eventually three_run && refused 71 agent_ot /bin/sh -c 'echo escaped' && stderr_has 'limit of 3 running agents' &&
        unharmed agent_op /bin/echo ran
    many=$?
    pkill -KILL -f "^/bin/sleep $sleeps\$"
    wait $jobs
    [ "$many" = 0 ] && unharmed agent_ot /bin/sh -c 'echo ran' && [ -z "$(find "$RECORDS/$ot_uid" -name 'colibri-many*')" ]
}
three_run() { [ "$(pgrep -f "^/bin/sleep $sleeps\$" | wc -l)" -eq 3 ]; }
# The monitor does not keep the priority of its caller; the agent does.
slow_caller() {
    next_tag
    as "$OP" nice -n 10 "$H" $request /bin/sleep "$sleeps" >"$noise" 2>&1 </dev/null &
    job=$!
    eventually agent_runs && monitor=$(pgrep -f "^$H create .*sleep $sleeps\$") &&
        [ "$(ps -o nice= -p "$monitor" | tr -d ' ')" = 0 ] && [ "$(ps -o nice= -p "$agent" | tr -d ' ')" = 10 ]
    slow=$?
    end_agent
    return "$slow"
}
long_name() {
    long=colibri-$(printf '%0247d' 0)
    unharmed op create --jail "$long" --path "$root" --ip4 disable --user "$AG" -- /bin/echo ran && [ -e "$RECORDS/$op_uid/$long" ]
}
# syslogd does not read, and an ordinary user fills its socket. FreeBSD 15 has a queue for each sender (unix(4)), so the lines of
# the helper are accepted.
stalled_log() {
    cp -p "$POLICY" "$work/policy"
    sed -i '' 's/^syslog = .*/syslog = "required"/' "$POLICY"
    pkill -STOP -x syslogd
    as "$AG" "$work/bin/attack" fill /var/run/log
    unharmed agent_op /bin/echo ran && unharmed agent_ot /bin/sh -c 'echo ran'
    stalled=$?
    pkill -CONT -x syslogd
    cp -p "$work/policy" "$POLICY"
    return "$stalled"
}

attack 'callers: the user of the other caller' refused 77 ot create --jail colibri-cbrt --path "$tree/r" --ip4 disable --user "$AG" -- /bin/sh -c 'echo escaped'
attack 'callers: the number of the user of the other caller' refused 77 ot create --jail colibri-cbrt --path "$tree/r" --ip4 disable --user "$ag_uid" -- /bin/sh -c 'echo escaped'
attack 'callers: a policy that shares a user' shared_user "$AG"
attack 'callers: a policy in which a caller is the user of another one' shared_user "$OP"
attack 'callers: a lock that is held for ever' held_lock
attack 'callers: more agents than the quota' too_many
attack 'callers: a low priority' slow_caller
attack 'callers: a name of 255 bytes' long_name
attack 'callers: a log socket that any user filled' stalled_log

# ---- the agent inside ----------------------------------------------------------------------------------------

kill_monitor_inside() { inside "kill -9 $(pgrep -o syslogd) || kill -9 $$ || kill -9 -1; ls /proc/1 2>/dev/null"; }
# Starts an agent, kills its requester, and verifies that all processes end.
ends_with_requester() {
    next_tag
    as "$OP" /bin/sh -c '"$0" "$@"; :' "$H" "$1" --jail "$2" $3 -- /bin/sh -c "$4" "$sleeps" >"$noise" 2>&1 </dev/null &
    job=$!
    eventually agent_runs
    sleep 2
    monitor=$(pgrep -o -f "^$H (create|attach) .*$sleeps\$")
    requester=$(ps -o ppid= -p "$monitor")
    [ -n "$requester" ] && as "$OP" kill -9 $requester
    wait "$job"
    eventually gone "$sleeps"
}
fork_storm='i=0; while [ $i -lt 50 ]; do daemon -f sleep "$0"; sleep "$0" & i=$((i + 1)); done; wait'
own_reaper='exec /bin/attack leave "$0"'
terminal() {
    run as "$OP" script -q /tmp/script.out /bin/sh -c "$H $request /bin/attack inject; :"
    ! grep -q injected "$out" /tmp/script.out && grep -q attack "$out" /tmp/script.out
}
leader_with_terminal() {
    run as "$OP" script -q /tmp/script.out "$H" $request /bin/echo escaped
    ! grep -q '^escaped' "$out" /tmp/script.out && grep -q terminal "$out" /tmp/script.out
}
no_gain() { run agent_op /bin/sh -c 'root-id -u; echo ran'; stdout_has "^$ag_uid\$" && stdout_has '^ran$'; }

attack 'inside: signals to the monitor, to root and to all' kill_monitor_inside
attack 'inside: a setuid program gains nothing' no_gain
attack 'inside: mdo' inside 'mdo -i -- /bin/echo escaped'
attack 'inside: mdo in a persistent jail' fails op attach --jail "$JAIL" -- /bin/sh -c 'mdo -i -- /bin/echo escaped'
attack 'inside: jexec and jail' inside 'jexec 1 /bin/echo escaped || jail -c path=/ command=/bin/echo escaped'
attack 'inside: a change of the own jail' inside "jail -m name=colibri-cbrt allow.mount=1 || jail -m name=colibri-cbrt enforce_statfs=0 || jail -R colibri-cbrt"
attack 'inside: chroot' inside 'chroot / /bin/echo escaped'
attack 'inside: mount of nullfs' inside 'mkdir -p /tmp/m; mount_nullfs / /tmp/m || mount -t nullfs / /tmp/m'
attack 'inside: mount of devfs' inside 'mkdir -p /tmp/m; mount -t devfs devfs /tmp/m || mount -t procfs proc /tmp/m'
attack 'inside: sysctl' inside 'sysctl kern.coredump=1 || sysctl security.bsd.see_other_uids=1 || sysctl security.jail.allow_raw_sockets=1'
attack 'inside: securelevel' inside 'sysctl kern.securelevel=-1 || sysctl kern.securelevel=4'
attack 'inside: host name' inside 'hostname escaped'
attack 'inside: kldload' inside 'kldload nullfs || kldload /boot/kernel/tmpfs.ko'
attack 'inside: devices of the host' inside 'cat /dev/mem || cat /dev/kmem || cat /dev/vtbd0 || ls /dev/vtbd0 || ls /dev/mem'
attack 'inside: processes of the host are invisible' inside 'ps -ax | while read p rest; do case $rest in *sys"log"d*) echo escaped ;; esac; done; false'
attack 'inside: no_new_privs cannot be cleared' inside 'proccontrol -m nonewprivs -s disable -p $$ && root-id -u'
attack 'inside: TIOCSTI to the terminal of the caller' terminal
attack 'inside: a helper that leads a session with a terminal' leader_with_terminal
attack 'inside: an own reaper with orphans, created jail' ends_with_requester create colibri-cbrt "--path $root --ip4 disable" "$own_reaper"
attack 'inside: an own reaper with orphans, persistent jail' ends_with_requester attach "$JAIL" '' "$own_reaper"
attack 'inside: 100 processes in new sessions, created jail' ends_with_requester create colibri-cbrt "--path $root --ip4 disable" "$fork_storm"
attack 'inside: 100 processes in new sessions, persistent jail' ends_with_requester attach "$JAIL" '' "$fork_storm"

jail -R "$CLOSED"
pw userdel "$OT"
pw userdel "$AO"
rm -f /tmp/script.out
