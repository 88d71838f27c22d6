#!/bin/sh
# Benchmark on a FreeBSD 15 host: compares, as root, agents of Colibri with daemon(8), jail(8) and jexec(8).
#
# usage: tests/freebsd/bench.sh [--rounds COUNT] [--only PATTERN] DIRECTORY
#
# DIRECTORY contains colibri, colibri-daemon, colibri-shim and colibri-jail-helper, a release build for this host. Each of COUNT
# rounds (7) runs all programs one after the other: for the time from the start to the end of true(1), 5 times each; and for
# the throughput of 64 MB of stored output, once each. --only restricts the programs to those that match. Prints tables of medians;
# a ratio is computed for each round. Nothing is asserted. Creates a user, a jail, a mac_do(4) rule and a policy, and removes
# them, even if interrupted.
# Exit status: 0 measured, 1 a program failed, 2 this host is unsuitable.
set -u

cannot() {
    printf 'bench.sh: %s\n' "$*" >&2
    exit 2
}
failed() {
    printf 'bench.sh: %s\n' "$*" >&2
    exit 1
}

usage="usage: tests/freebsd/bench.sh [--rounds COUNT] [--only PATTERN] DIRECTORY, which contains the four programs"
rounds=7 only=''
while [ $# -gt 1 ]; do
    case $1 in
        --rounds) shift && rounds=$1 ;;
        --only) shift && only=$1 ;;
        *) cannot "$usage" ;;
    esac
    shift
done
[ $# = 1 ] || cannot "$usage"
[ "$rounds" -gt 0 ] 2>/dev/null || cannot "$usage"
case $(uname -sr) in
    'FreeBSD 15.'*) ;;
    *) cannot "this is $(uname -sr); it runs on FreeBSD 15" ;;
esac
[ "$(id -u)" = 0 ] || cannot "root is required to create a user and a jail"
for program in colibri colibri-daemon colibri-shim colibri-jail-helper; do
    [ -x "$1/$program" ] || cannot "$1/$program is missing; build it for this host and pass its directory"
done
built=$(cd "$1" && pwd)

OP=cbrbench               # the daemon's user
JAIL=cbrbenchjail         # a persistent jail
POLICY=/usr/local/etc/colibri/helper.toml
RUNS=5                    # runs of true(1) of each program in a round

for file in "$POLICY" /usr/local/etc/colibri/colibri.toml; do
    [ ! -e "$file" ] || cannot "$file exists; use a host without a Colibri installation"
done
! id "$OP" >/dev/null 2>&1 || cannot "user $OP exists from an earlier run; remove it: pw userdel $OP"
! jls -j "$JAIL" >/dev/null 2>&1 || cannot "jail $JAIL exists from an earlier run; remove it: jail -R $JAIL"

# ---- set-up ----------------------------------------------------------------------------------------------

loaded='' rules='' made_etc='' work=''

clean_up() {
    status=$?
    trap '' INT TERM HUP
    pkill -KILL -U "$OP"
    jail -R "$JAIL" 2>/dev/null
    rm -f "$POLICY"
    [ -z "$made_etc" ] || rmdir "${POLICY%/*}" 2>/dev/null
    [ -z "$rules" ] || sysctl -q security.mac.do.rules="${rules#was:}" >/dev/null
    [ -z "$loaded" ] || kldunload mac_do
    pw userdel "$OP" 2>/dev/null
    [ -z "$work" ] || rm -rf "$work"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP PIPE

mkdir -p /usr/local
work=$(mktemp -d /usr/local/colibri-bench.XXXXXX) || failed "cannot create a directory in /usr/local"
chmod 755 "$work"
root=$work/root
mkdir "$work/bin" "$root" "$root/bin" "$root/dev" "$root/lib" "$root/libexec" || failed "cannot create a directory in $work"
for program in colibri colibri-daemon colibri-shim; do
    install -m 755 "$built/$program" "$work/bin/" || failed "cannot copy $program"
done
install -o root -g wheel -m 4755 "$built/colibri-jail-helper" "$work/bin/" || failed "cannot copy the helper"
pw useradd "$OP" -d "$work" -s /bin/sh -w no -c 'Colibri benchmark' || failed "cannot create user $OP"
install -d -o "$OP" -m 700 "$work/state-mdo" "$work/state-helper" "$work/run-mdo" "$work/run-helper" "$work/out" ||
    failed "cannot create a directory in $work"

# All programs run these two, in a jail or not.
cp /usr/bin/true /bin/cat "$root/bin/" || failed "cannot copy true(1) and cat(1)"
cp /libexec/ld-elf.so.1 "$root/libexec/" || failed "cannot copy the linker of true(1)"
for library in $(ldd -f '%p\n' /usr/bin/true /bin/cat 2>/dev/null | grep '^/' | sort -u); do
    cp "$library" "$root/lib/" || failed "cannot copy $library"
done
yes '{"type":"text","text":"a line of output, as an agent writes it"}' | dd bs=64k count=1024 iflag=fullblock of="$root/output" 2>/dev/null
size=$(stat -f %z "$root/output")
jail -q -c name="$JAIL" path="$root" host.hostname="$JAIL" ip4=inherit persist || failed "cannot create jail $JAIL"

if ! kldstat -q -m mac_do; then
    kldload mac_do || failed "cannot load mac_do(4)"
    loaded=yes
fi
before=$(sysctl -n security.mac.do.rules)
rules=was:$before
sysctl -q security.mac.do.rules="${before:+$before;}uid=$(id -u "$OP")>uid=0" >/dev/null || failed "cannot set a mac_do(4) rule"
[ -d "${POLICY%/*}" ] || made_etc=yes
mkdir -p "${POLICY%/*}"
cat >"$POLICY" <<POLICY_TEXT || failed "cannot write the policy"
syslog = "best-effort"

[[rule]]
callers = ["$OP"]
jails = ["colibri-*", "$JAIL"]
roots = ["$root"]
users = ["$OP"]
programs = ["*"]
ip4 = ["inherit"]
environment = ["PATH", "LANG", "COLIBRI_AGENT_ID"]
signals = ["TERM", "INT", "HUP", "KILL"]
POLICY_TEXT
chmod 644 "$POLICY"
{
    echo 'root:*:0:0::0:0:root:/:/bin/sh'
    echo "$OP:*:$(id -u "$OP"):$(id -g "$OP")::0:0:agent:/:/bin/sh"
} >"$work/master.passwd"
mkdir "$root/etc"
install -m 600 "$work/master.passwd" "$root/etc/master.passwd"
pwd_mkdb -p -d "$root/etc" "$root/etc/master.passwd" || failed "cannot create the user table of the jail"

# Starts the daemon of a privilege backend. su(1) and its shell keep it from being the leader of a process group.
start_daemon() {
    su "$OP" -c '"$@"; exit $?' sh env -i PATH=/usr/bin:/bin:/usr/sbin:/sbin HOME=/ LANG=C.UTF-8 \
        COLIBRI_JAIL_PRIV_MODE="$1" COLIBRI_JAIL_HELPER="$work/bin/colibri-jail-helper" \
        "$work/bin/colibri-daemon" --socket "$work/run-$1/colibri.sock" --state-dir "$work/state-$1" >"$work/daemon-$1" 2>&1 </dev/null &
    tries=200
    until client "$1" ps -q >/dev/null 2>&1; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || failed "the $1 daemon does not start: $(cat "$work/daemon-$1")"
        sleep 0.1
    done
}

# ---- the programs ------------------------------------------------------------------------------------------
# Each runs a command with chroot(8), so that changing the user costs all the same.

plain() { chroot -u "$OP" / "$@"; }
client() {
    COLIBRI_SOCKET=$work/run-$1/colibri.sock COLIBRI_STATE_DIR=$work/state-$1
    export COLIBRI_SOCKET COLIBRI_STATE_DIR
    shift
    plain "$work/bin/colibri" --no-autostart "$@"
}

# The options of Colibri for a kind of confinement: BACKEND KIND.
confinement() {
    case $1 in
        persistent) echo --jail-name "$JAIL" --jail-user "$OP" ;;
        ephemeral) echo --jail-path "$root" --jail-user "$OP" ;;
    esac
}
# The root directory as the program sees it.
prefix() {
    case $1 in
        bare | pipe | daemon | colibri-none | colibri-run) echo "$root" ;;
        *) echo '' ;;
    esac
}

# Runs true(1) until its end.
# shellcheck disable=SC2046 # words
spawn() {
    case $1 in
        bare) plain "$root/bin/true" ;;
        # Descriptor 3 is open until daemon(8) and its child have ended.
        daemon) : "$(plain daemon -o /dev/null "$root/bin/true" 3>&1 >/dev/null)" ;;
        jail) chroot / jail -q -c path="$root" ip4=inherit exec.jail_user="$OP" command=/bin/true ;;
        jexec) chroot / jexec -U "$OP" "$JAIL" /bin/true ;;
        colibri-none) client mdo run -- "$root/bin/true" ;;
        mdo-* | helper-*) client "${1%-*}" run $(confinement "${1#*-}") -- /bin/true ;;
    esac </dev/null >/dev/null
}

# Writes the output of cat(1) to a file.
# shellcheck disable=SC2046 # words
output() {
    set -- "$1" "$(prefix "$1")/output"
    case $1 in
        bare) plain "$root/bin/cat" "$2" | plain /bin/cat >"$work/out/log" ;;
        daemon) : "$(plain daemon -o "$work/out/log" "$root/bin/cat" "$2" 3>&1 >/dev/null)" ;;
        jail) chroot / jail -q -c path="$root" ip4=inherit exec.jail_user="$OP" command=/bin/cat "$2" | plain /bin/cat >"$work/out/log" ;;
        jexec) chroot / jexec -U "$OP" "$JAIL" /bin/cat "$2" | plain /bin/cat >"$work/out/log" ;;
        colibri-none) stored mdo -- "$root/bin/cat" "$2" ;;
        mdo-* | helper-*) stored "${1%-*}" $(confinement "${1#*-}") -- /bin/cat "$2" ;;
    esac </dev/null
}
stored() {
    backend=$1
    shift
    id=$(client "$backend" spawn "$@") && client "$backend" wait "$id"
}

# ---- measurement ---------------------------------------------------------------------------------------------

PROGRAMS='bare daemon jail jexec colibri-none mdo-persistent mdo-ephemeral helper-persistent helper-ephemeral'
programs=''
for program in $PROGRAMS; do
    ! echo "$program" | grep -Eq -e "$only" || programs="$programs $program"
done

name_of() {
    case $1 in
        bare) echo 'no supervisor' ;;
        daemon | jail) echo "$1(8)" ;;
        jexec) echo 'jexec(8)' ;;
        colibri-none) echo 'Colibri, no jail' ;;
        *) echo "Colibri, ${1%-*}, ${1#*-} jail" ;;
    esac
}
now() { date +%s%N; }

# Appends "ROUND PROGRAM NANOSECONDS" to a file: WHAT REPETITIONS.
measure() {
    for program in $programs; do
        left=$2 start=$(now)
        while [ "$left" -gt 0 ]; do
            "$1" "$program" || failed "$program failed to run the command of $1"
            left=$((left - 1))
        done
        end=$(now)
        [ "$round" = 0 ] || echo "$round $program $(((end - start) / $2))" >>"$work/$1"
        [ "$1" != output ] || {
            rm -f "$work/out/log"
            for backend in mdo helper; do
                client "$backend" prune --older-than 0s >/dev/null 2>&1
            done
        }
    done
}

median() { sort -n | awk '{ value[NR] = $1 } END { if (NR) printf "%s", NR % 2 ? value[(NR + 1) / 2] : (value[NR / 2] + value[NR / 2 + 1]) / 2 }'; }
# The median of the ratios of a program's times to another's: FILE PROGRAM OTHER.
ratio() {
    awk -v one="$2" -v two="$3" '$2 == one { a[$1] = $3 } $2 == two { b[$1] = $3 }
        END { for (round in a) if (b[round]) print a[round] / b[round] }' "$1" | median
}
table() {
    echo
    echo "| $2 | $3 | time / daemon(8) | time / jail(8) |"
    echo '|---|---|---|---|'
    for program in $programs; do
        value=$(awk -v program="$program" '$2 == program { print $3 }' "$work/$1" | median)
        to_daemon=$(ratio "$work/$1" "$program" daemon) to_jail=$(ratio "$work/$1" "$program" jail)
        awk -v name="$(name_of "$program")" -v ns="$value" -v what="$1" -v size="$size" -v a="$to_daemon" -v b="$to_jail" 'BEGIN {
            if (what == "spawn") value = sprintf("%.1f ms", ns / 1e6)
            else value = sprintf("%.0f MB/s", size * 1e3 / ns)
            printf "| %s | %s | %.2f | %.2f |\n", name, value, a, b
        }'
    done
}

start_daemon mdo
start_daemon helper
round=0
measure spawn 1 # warms the caches
while [ $round -lt "$rounds" ]; do
    round=$((round + 1))
    measure spawn $RUNS
    measure output 1
done
echo "$(uname -srm), $(sysctl -n hw.ncpu) processors, $rounds rounds"
table spawn 'true(1), from the start to the end' median
table output '64 MB of output, stored' median
