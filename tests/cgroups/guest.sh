#!/bin/sh
# Runs as init of a virtual machine (scripts/cgroups.sh) and tests limits by cgroups: as root in the root of the tree, and
# as a user in a delegated part. Prints TAP.
set -u
export PATH=/bin:/usr/bin HOME=/root
if [ ! -e /switched ]; then
    # bwrap calls pivot_root(2), which fails on the initial file system.
    mount -t tmpfs -o size=512m root /new
    cp -a /bin /etc /init /lib* /proc /root /sbin /sys /dev /tmp /usr /new/
    : >/new/switched
    exec switch_root /new /init
fi
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup /sys/fs/cgroup
ip link set lo up
mkdir -p /run /var/tmp
chmod 1777 /tmp /var/tmp

number=0
check() { # NAME COMMAND…
    number=$((number + 1))
    name=$1
    shift
    if "$@"; then echo "ok $number - $name"; else echo "not ok $number - $name"; fi
}
has() { grep -q -- "$1" "$2" 2>/dev/null; }
# busybox's dd allocates a block of this size and fills it.
greedy='dd if=/dev/zero of=/dev/null bs=200M count=1 2>/dev/null; echo survived'
# Starts up to 90 processes and reports how many were allowed.
# shellcheck disable=SC2016 # expanded by the agent's shell
many='n=0; while [ $n -lt 90 ]; do n=$((n+1)); (sleep 1000 &) 2>/dev/null || break; done; echo "at $n"'

# Runs a command as the user agent. Each user has a separate daemon, which the first call starts.
as_agent() { /usr/bin/setpriv --reuid 1000 --regid 1000 --clear-groups "$@"; }
colibri() { colibri_as root "$@"; }
colibri_as() {
    who=$1
    shift
    if [ "$who" = root ]; then
        COLIBRI_SOCKET=/tmp/root/run/s COLIBRI_STATE_DIR=/tmp/root/state /bin/colibri "$@"
    else
        export COLIBRI_SOCKET="/tmp/$who/run/s" COLIBRI_STATE_DIR="/tmp/$who/state" HOME="/tmp/$who"
        as_agent /bin/colibri "$@"
    fi
}

suite() { # WHO CGROUP
    who=$1
    tree=$2
    for jail in --no-jail '--jail-path /'; do
        shown=$who
        [ "$jail" = --no-jail ] || shown="$who in a sandbox"
        # shellcheck disable=SC2086 # a list of words
        colibri_as "$who" run $jail --memory 64M -- sh -c "$greedy" >/tmp/out 2>/tmp/err
        code=$?
        check "$shown: an agent that exceeds its memory limit is ended" test "$code" -ne 0
        check "$shown: with all its processes" test ! -s /tmp/out
        colibri_as "$who" ps --json >/tmp/ps
        check "$shown: and the reason of its end is recorded" has 'its memory limit was reached' /tmp/ps
        # shellcheck disable=SC2086
        colibri_as "$who" run $jail --memory 400M -- sh -c "$greedy" >/tmp/out 2>/tmp/err
        check "$shown: within its limit it survives" has 'survived' /tmp/out
        # shellcheck disable=SC2086
        id=$(colibri_as "$who" spawn $jail --processes 20 -- sh -c "$many; sleep 1000")
        now=0
        while [ "$now" -lt 100 ] && ! has 'max [1-9]' "$tree/$id/pids.events"; do
            now=$((now + 1))
            usleep 100000
        done
        check "$shown: a process over the limit is refused" has 'max [1-9]' "$tree/$id/pids.events"
        check "$shown: and the number of processes is within the limit" test "$(cat "$tree/$id/pids.current")" -le 20
        colibri_as "$who" kill --grace 0s "$id" 2>/dev/null
        check "$shown: a killed agent leaves no cgroup" test ! -e "$tree/$id"
        # shellcheck disable=SC2086
        id=$(colibri_as "$who" spawn $jail --cpu 0.2 -- sh -c 'while :; do :; done')
        sleep 3
        used=$(sed -n 's/^usage_usec //p' "$tree/$id/cpu.stat")
        check "$shown: uses no more than its CPU share ($used us in 3 s)" test "$used" -lt 1000000
        check "$shown: and is throttled" has 'nr_throttled [1-9]' "$tree/$id/cpu.stat"
        shim=$(sed -n 's/.*"shim_pid":\([0-9]*\).*/\1/p' "/tmp/$who/state/agents/$id/shim.json")
        kill -9 "$shim"
        now=0
        while [ "$now" -lt 100 ] && [ -e "$tree/$id" ]; do
            now=$((now + 1))
            usleep 100000
        done
        check "$shown: nor does an agent whose shim was killed" test ! -e "$tree/$id"
    done
    # Each run of a restarted agent enters the same cgroup.
    id=$(colibri_as "$who" spawn --processes 50 --restart always --restart-delay 1ms --restart-limit 3 --no-jail -- sh -c 'grep ^0:: /proc/self/cgroup')
    colibri_as "$who" wait "$id" >/dev/null 2>&1
    check "$who: each run is in the agent's cgroup" test "$(colibri_as "$who" logs "$id" | grep -c "/$id\$")" -eq 4
    check "$who: and it is removed with the last" test ! -e "$tree/$id"
}

# Ends a partial line of the firmware.
echo
mkdir -p /tmp/root /tmp/agent
chown 1000:1000 /tmp/agent
suite root /sys/fs/cgroup/colibri
colibri shutdown 2>/dev/null

# Imitates systemd for a unit with Delegate=yes and DelegateSubgroup=daemon.
service=/sys/fs/cgroup/service
mkdir "$service" "$service/daemon"
echo '+memory +pids +cpu' >/sys/fs/cgroup/cgroup.subtree_control
chown 1000:1000 "$service" "$service/cgroup.procs" "$service/cgroup.subtree_control" "$service/cgroup.threads"
chown 1000:1000 "$service/daemon" "$service/daemon/cgroup.procs"
start() {
    # exec: no process of this script stays in the cgroup.
    sh -c "echo \$\$ >$service/daemon/cgroup.procs; exec env -i PATH=/bin:/usr/bin HOME=/tmp/agent \
        /usr/bin/setpriv --reuid 1000 --regid 1000 --clear-groups /bin/colibri-daemon --socket /tmp/agent/run/s --state-dir /tmp/agent/state" 2>>/tmp/daemon.log &
    now=0
    while [ "$now" -lt 100 ] && ! colibri_as agent ps --no-autostart >/dev/null 2>&1; do
        now=$((now + 1))
        usleep 100000
    done
}
start
suite agent "$service"
id=$(colibri_as agent spawn --no-jail --processes 20 -- sleep 1000)
colibri_as agent shutdown 2>/dev/null
wait
start
colibri_as agent run --no-jail --processes 20 -- true
check 'the next daemon uses the same cgroup' test $? -eq 0
colibri_as agent kill --grace 0s "$id" 2>/dev/null
check 'and ends agents of the previous one' test ! -e "$service/$id"
colibri_as agent shutdown 2>/dev/null
wait

# A cgroup with processes cannot have child cgroups with controllers.
mkdir /sys/fs/cgroup/login
sh -c 'echo $$ >/sys/fs/cgroup/login/cgroup.procs; mkdir -p /tmp/other; COLIBRI_SOCKET=/tmp/other/run/s COLIBRI_STATE_DIR=/tmp/other/state /bin/colibri run --no-jail --processes 9 -- true' 2>/tmp/err
check 'limits in the cgroup of a login session are refused' has 'DelegateSubgroup=daemon' /tmp/err

echo "1..$number"
[ -z "${DEBUG:-}" ] || cat /tmp/daemon.log /tmp/err
echo 'end of the checks'
poweroff -f
