# shellcheck shell=sh
# Torture of the daemons and shims on FreeBSD. acceptance.sh sources it for --torture COUNT, with its users, jail and rules.
#
# Two daemons, one for each privilege backend, run at most $MAX_AGENTS agents in persistent and ephemeral jails. COUNT times it kills
# a shim, a daemon, both, a monitor, or a shim during `colibri kill`, at a random moment, also while agents start. Then it
# ends what is left, and checks that nothing of any agent remains and that no exit record claims what is false.
# TORTURE_SEED repeats the choices of an earlier run, but not its moments.
#
# shellcheck disable=SC2034,SC2154 # acceptance.sh sets and uses these variables
# shellcheck disable=SC2009 # pgrep(1) cannot exclude zombies

MAX_AGENTS=9                       # live agents
torture_dir=$work/torture
seed=${TORTURE_SEED:-$(date +%s)}
racct=$(sysctl -n kern.racct.enable 2>/dev/null)
agents=0 restarts_failed=0 kills=''

# Stores a random number below $1 in $random.
random() {
    seed=$(((seed * 1103515245 + 12345) & 0x7fffffff))
    random=$(((seed >> 12) % $1))
}

# Runs colibri as the daemon's user, at most 60 s, with less overhead than su(1).
client() {
    chroot -u "$OP" / /usr/bin/env -i PATH=/usr/bin:/bin:/usr/sbin:/sbin HOME=/ LANG=C.UTF-8 \
        COLIBRI_SOCKET="$work/run-$mode/colibri.sock" COLIBRI_STATE_DIR="$work/state-$mode" \
        timeout 60 "$work/bin/colibri" --no-autostart "$@"
}

use() { mode=$1 privilege=$1; }

# Prints the pids of the shims of this mode, also of those that have no agent yet, except zombies.
shims() { pgrep -f "^$work/bin/colibri-shim $work/state-$mode/"; }
daemon_of_mode() { pgrep -f "^$work/bin/colibri-daemon --socket $work/run-$mode/"; }
monitors() { pgrep -f "^$work/bin/colibri-jail-helper (monitor|create|attach) "; }

# Stores one of the words, or nothing, in $chosen.
choose() {
    chosen=''
    [ $# -gt 0 ] || return 1
    random $#
    shift "$random"
    chosen=$1
}

# Waits up to 60 s in short steps.
soon() {
    attempts=600
    until "$@"; do
        attempts=$((attempts - 1))
        [ $attempts -gt 0 ] || return 1
        sleep 0.1
    done
}

serves() { client ps -q >/dev/null 2>&1; }

ensure_daemon() {
    daemon_of_mode >/dev/null && serves && return 0
    as "$OP" COLIBRI_JAIL_PRIV_MODE="$privilege" COLIBRI_JAIL_HELPER="$work/bin/colibri-jail-helper" LANG=C.UTF-8 \
        "$work/bin/colibri-daemon" --socket "$work/run-$mode/colibri.sock" --state-dir "$work/state-$mode" \
        >>"$work/daemon-$mode.log" 2>&1 </dev/null &
    soon serves && return 0
    restarts_failed=$((restarts_failed + 1))
    echo "# torture: the $mode daemon does not answer"
    return 1
}

# Spawns an agent of a random kind in the background. Mounts and limits need the backend mdo and an ephemeral jail. $torture_dir/N
# describes agent N: mode, confinement, kind; N.id contains its id if the daemon answered.
spawn_random() {
    agents=$((agents + 1))
    text=$mark$agents # an argument of its processes
    random 2
    case $random in
        0) kind=persistent ;;
        1) kind=ephemeral ;;
    esac
    set -- --name "torture-$agents"
    random 8
    case $random in
        0) what=sleep script="exec sleep $text" ;;
        1) what=stubborn script="daemon -f sleep $text; trap '' TERM; while :; do sleep 1; done; : $text" ;;
        2) what=left script="daemon -f sleep $text; exit 5" ;;
        3)
            what=restart script="daemon -f sleep $text; sleep 0.5; exit 5"
            set -- "$@" --restart always --restart-limit 5 --restart-delay 300ms
            ;;
        4) what=short script="sleep 0.3; exit 5; : $text" ;;
        5 | 6)
            what=mount script="trap '' TERM HUP; sleep $text & while :; do wait; sleep 1; done"
            [ "$mode $kind" != 'mdo ephemeral' ] || set -- "$@" --mount "$work/project:/torture/$((agents % 12))"
            ;;
        7)
            what=limit script="daemon -f sleep $text; sleep $text"
            [ "$mode $kind $racct" != 'mdo ephemeral 1' ] || set -- "$@" --processes 20
            ;;
    esac
    echo "$mode $kind $what" >"$torture_dir/$agents"
    verb=torture_spawn
    in_jail "$@" -- /bin/sh -c "$script" >"$torture_dir/$agents.id" 2>"$torture_dir/$agents.err" </dev/null &
    spawns="$spawns $!"
}
torture_spawn() { client spawn "$@"; }

# Kills one of the processes, and logs its arguments.
kill_one_of() {
    choose "$@" || return 1
    echo "round $round, $victim: KILL to $(ps -ww -o pid= -o args= -p "$chosen")" >>"$torture_dir/log"
    kill -KILL "$chosen" 2>/dev/null
}
# shellcheck disable=SC2046 # pids
kill_random_shim() { kill_one_of $(shims); }
# shellcheck disable=SC2046 # pids
kill_daemon() { kill_one_of $(daemon_of_mode); }

torture_round() {
    spawns=''
    random 2
    case $random in
        0) use mdo ;;
        1) use helper ;;
    esac
    live=$(pgrep -f "^$work/bin/colibri-shim " | wc -l)
    random 3
    while [ "$random" -ge 0 ] && [ "$live" -lt "$MAX_AGENTS" ]; do
        left=$random
        spawn_random
        live=$((live + 1)) random=$((left - 1))
    done
    random 700
    sleep "0.$(printf %03d "$random")"
    random 10
    if [ "$live" -ge "$MAX_AGENTS" ] && [ "$random" -gt 6 ]; then
        random=3
    fi
    case $random in
        0 | 1 | 2) victim=shim && kill_random_shim ;;
        3) victim=shims && kill_random_shim && kill_random_shim && kill_random_shim ;;
        4 | 5) victim=daemon && kill_daemon ;;
        6) victim=daemon+shim && kill_daemon && kill_random_shim ;;
        7) victim=shim+daemon && kill_random_shim && kill_daemon ;;
        8)
            # shellcheck disable=SC2046 # pids
            victim=monitor && kill_one_of $(monitors)
            ;;
        9)
            # shellcheck disable=SC2046 # ids
            victim=kill+shim && choose $(client ps --running -q 2>/dev/null) && {
                client kill --grace 0s "$chosen" >/dev/null 2>&1 &
                spawns="$spawns $!"
                random 300
                sleep "0.$(printf %03d "$random")"
                kill_random_shim
            }
            ;;
    esac
    kills="$kills $victim"
    ensure_daemon
    # shellcheck disable=SC2086 # pids
    [ -z "$spawns" ] || wait $spawns
    check_claims
}

# Reports agents whose exit record claims that no process is left while one is in a jail.
check_claims() {
    for record in "$work/state-mdo/agents"/*/exit.json "$work/state-helper/agents"/*/exit.json; do
        [ -e "$record" ] || continue
        directory=${record%/exit.json}
        id=${directory##*/}
        [ ! -e "$torture_dir/ended.$id" ] || continue
        : >"$torture_dir/ended.$id"
        # A record that names the remaining processes, or says that they are unknown, claims nothing.
        ! grep -Eq 'still running|cannot list|not verified|unknown whether' "$record" || continue
        number_of=$(sed -n 's/.*"name":"torture-\([0-9]*\)".*/\1/p' "$directory/spec.json")
        echo "$id ${number_of:-none}"
    done >"$torture_dir/claimed"
    [ -s "$torture_dir/claimed" ] || return 0
    ps -axww -o jid= -o state= -o pid= -o args= >"$torture_dir/ps"
    jls name >"$torture_dir/jls"
    while read -r id number_of; do
        if grep -E "^ *[1-9][0-9]* +[^Z ][^ ]* .*$mark$number_of(\$|[^0-9])" "$torture_dir/ps" >"$torture_dir/seen" ||
            grep -x "colibri-$id" "$torture_dir/jls" >"$torture_dir/seen"; then
            {
                echo "agent $id, $(cat "$torture_dir/$number_of" 2>/dev/null), after $victim: its record claims an end:"
                cat "$work"/state-*/agents/"$id"/exit.json "$torture_dir/seen"
            } >>"$torture_dir/false"
        fi
    done <"$torture_dir/claimed"
}

lists_nothing() {
    "$@" >"$out" 2>/dev/null
    ! grep -q . "$out"
}
# Prints what the run did to the agents whose processes are in $out.
explain_left() {
    sed -n "s/.*$mark\\([0-9]*\\).*/\\1/p" "$out" | sort -u | while read -r number_of; do
        left_id=$(cat "$torture_dir/$number_of.id")
        echo "agent $number_of $left_id: $(cat "$torture_dir/$number_of")"
        grep -E "$mark$number_of(\$|[^0-9])|${left_id:-no id}" "$torture_dir/log"
        cat "$work"/state-*/agents/"${left_id:-none}"/exit.json
    done >>"$err" 2>/dev/null
    return 1
}
user_processes() {
    ps -axww -o state= -o uid= -o jid= -o pid= -o args= | grep -v '^Z' |
        awk -v op="$op_uid" -v ag="$ag_uid" '$2 == op || $2 == ag'
}
root_processes() {
    ps -axww -o state= -o user= -o pid= -o args= | grep -E "colibri-jail-helper|[ /](jail|jexec|mdo) .*$mark" | grep -Ev '^Z|grep '
}
left_jails() { jls -d name | grep '^colibri-'; }
left_mounts() { mount -p | grep "$root/" | grep -v "$root/dev[[:space:]]"; }
left_rules() { rctl | grep 'jail:colibri-'; }
unrecorded() {
    for directory in "$work/state-mdo/agents"/* "$work/state-helper/agents"/*; do
        [ -e "$directory/exit.json" ] || [ ! -e "$directory" ] || echo "$directory: $(echo "$directory"/*)"
    done
    for file in "$torture_dir"/*.id; do
        id=$(cat "$file")
        [ -z "$id" ] || [ -e "$work/state-mdo/agents/$id/exit.json" ] || [ -e "$work/state-helper/agents/$id/exit.json" ] ||
            echo "${file##*/}: $id has no record"
    done
}

# Prints records with an exit that the agent cannot have had: a code other than 5, or a status of a lost one.
impossible() {
    for record in "$work/state-mdo/agents"/*/exit.json "$work/state-helper/agents"/*/exit.json; do
        grep -q '"name":"torture-' "${record%/*}/spec.json" || continue
        if grep -q '"reason":"lost"' "$record"; then
            grep -q '"exit":null' "$record" || echo "$record: $(cat "$record")"
        elif grep -q '"reason":"exited"' "$record"; then
            grep -q '"exit":{"code":5}' "$record" || echo "$record: $(cat "$record")"
        fi
    done
}

torture_rounds() {
    round=0
    while [ $round -lt "$torture" ]; do
        round=$((round + 1))
        torture_round
        if [ $((round % 25)) = 0 ]; then
            echo "# torture: $round rounds, $(($(date +%s) - started)) s, $agents spawns"
        fi
    done
    # shellcheck disable=SC2086 # words
    printf '%s\n' $kills | sort | uniq -c | sed 's/^/# torture: /'
    [ $restarts_failed = 0 ]
}
torture_started() {
    echo "# torture: $(cat "$torture_dir"/*.id | wc -l) of $agents spawns were answered with an id; the others with:"
    cat "$torture_dir"/*.err | sed -e 's/[0-9][0-9]*/N/g' -e 's/torture-[^ ]*/NAME/' | cut -c 1-100 | sort | uniq -c | sed 's/^/# torture: /'
    [ "$(cat "$torture_dir"/*.id | wc -l)" -gt $((agents / 2)) ] || {
        cat "$torture_dir"/*.err >"$err"
        false
    }
}
torture_killed() {
    answer=0
    for one in mdo helper; do
        use $one
        ensure_daemon || answer=1
        # shellcheck disable=SC2046 # ids
        set -- $(client ps --running -q 2>/dev/null)
        [ $# = 0 ] || client kill --grace 0s "$@" >>"$out" 2>>"$err" || answer=1
        code=$answer
    done
    victim=end
    check_claims
    for one in mdo helper; do
        use $one
        kill -TERM "$(daemon_of_mode)" || answer=1
    done
    return $answer
}
torture_processes() { soon lists_nothing user_processes || explain_left; }
torture_remains() { soon lists_nothing left_mounts && lists_nothing left_rules; }
torture_claims() {
    impossible >"$out"
    [ ! -e "$torture_dir/false" ] || cat "$torture_dir/false" >>"$out"
    ! grep -q . "$out"
}

pkill -KILL -U "$AG"
mkdir "$torture_dir" "$root/torture" || bail "cannot create a directory for the torture"
for point in 0 1 2 3 4 5 6 7 8 9 10 11; do
    mkdir "$root/torture/$point" || bail "cannot create a mount point"
done
started=$(date +%s) round=0 victim=none
: >"$torture_dir/log"
echo "# torture: seed $seed, kern.racct.enable=${racct:-none}"
use mdo
ensure_daemon || bail 'the mdo daemon does not start'
use helper
ensure_daemon || bail 'the helper daemon does not start'

check "torture: after each of $torture kills the daemons answer" torture_rounds
check 'torture: most spawns succeed' torture_started
check 'torture: kill ends all agents that are left' torture_killed
check 'torture: no process of any agent, shim or daemon is left' torture_processes
check 'torture: no monitor is left' soon lists_nothing root_processes
check 'torture: no jail of an agent is left, not even a dying one' soon lists_nothing left_jails
check 'torture: no mount and no limit is left' torture_remains
check 'torture: each agent has an exit record' lists_nothing unrecorded
check 'torture: no exit record claims what is false' torture_claims
