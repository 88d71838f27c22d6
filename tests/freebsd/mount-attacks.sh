# shellcheck shell=sh
# Attempts of agents to redirect the mounts of other agents, run by tests/freebsd/acceptance.sh --attacks after attacks.sh, with the
# backend mdo. Each attempt is one TAP line, as in attacks.sh.
#
# shellcheck disable=SC2034,SC2154 # acceptance.sh and attacks.sh set and use these variables

mode=mdo privilege=mdo
start_daemon || bail "the daemon does not start"

no_mount_on() { ! mount -p | awk -v path="$1" '$2 == path { found = 1 } END { exit !found }'; }
no_mount_of() { ! mount -p | grep -q "$work/project\|colibri-roots"; }

# Starts an agent that exchanges two names in its /tmp/home until it is killed.
swapper() {
    install -d -o "$AG" "$root/tmp/home" "$root/tmp/home/name" && ln -sfh "$1" "$root/tmp/home/link" || return 1
    spawn --jail-path "$root" --jail-user "$AG" -- /bin/attack swap /tmp/home name link && eventually logged swapping
}
# Succeeds if the agent has exchanged until now, and ends it.
end_swapper() {
    ! ended
    answer=$?
    colibri kill --grace 0s "$id" >"$noise" 2>&1
    rm -rf "${root:?}/tmp/home"
    return "$answer"
}
# Records the mounts on a path of the host, until $work/watches is removed. The clean-up removes them with their agent.
watch_mounts() {
    while [ -e "$work/watches" ]; do
        no_mount_on "$1" || echo "$1" >>"$work/redirected"
    done
}

swapped_target() {
    mkdir -p "$work/host/in/point" "$root/tmp/home/name/in/point" && swapper "$work/host" && : >"$work/watches" || return 1
    watch_mounts "$work/host/in/point" &
    watcher=$! tries=15 ran=0
    while [ $tries -gt 0 ] && [ ! -e "$work/redirected" ]; do
        run colibri run --jail-path "$root" --jail-user "$AG" --mount "$work/project:/tmp/home/name/in/point" -- /bin/echo ran
        ! exits 0 || ran=$((ran + 1))
        tries=$((tries - 1))
    done
    rm "$work/watches"
    wait "$watcher"
    echo "$ran of 15 ran" >>"$out"
    end_swapper && [ $tries = 0 ] && [ $ran -gt 0 ] && [ ! -e "$work/redirected" ] && no_mount_on "$work/host/in/point" && no_mount_of
}
swapped_source() {
    swapper /etc || return 1
    mkdir -p "$root/tmp/shown"
    # Several checks of a try must each see the directory, so few tries start an agent.
    tries=40 ran=0
    while [ $tries -gt 0 ] && { run colibri run --jail-path "$root" --jail-user "$AG" --mount "$root/tmp/home/name:/tmp/shown" -- /bin/ls /tmp/shown; ! stdout_has passwd; }; do
        ! exits 0 || ran=$((ran + 1))
        tries=$((tries - 1))
    done
    end_swapper && [ $tries = 0 ] && [ $ran -gt 0 ] && no_mount_on "$root/tmp/shown" && no_mount_of
}
kept_open() {
    mkdir -p "$root/tmp/held" && next_tag
    spawn --jail-path "$root" --jail-user "$AG" --mount "$work/project:/tmp/held" -- /bin/sleep "$sleeps" && eventually runs "$sleeps" || return 1
    exec 9<"$root/tmp/held/given"
    ended_by_kill --grace 0s && no_mount_on "$root/tmp/held" && no_mount_of
    answer=$?
    exec 9<&-
    return "$answer"
}
mount_of_others() {
    mkdir -p "$root/tmp/admin" && mount -t nullfs -o ro /usr/share "$root/tmp/admin" || return 1
    run colibri run --jail-path "$root" --jail-user "$AG" --mount "$work/project:/tmp/admin" -- /bin/ls /tmp/admin
    exits 0 && stdout_has given && [ "$(mount -p | grep -c "$root/tmp/admin")" = 1 ] && no_mount_of
    answer=$?
    umount "$root/tmp/admin"
    return "$answer"
}
# Succeeds if an agent with these options does not start, because it could rename the mount point.
refused_movable() {
    run colibri run --jail-user "$AG" "$@" -- /bin/echo started
    ! exits 0 && ! stdout_has started && stderr_has 'can be renamed or replaced by other users'
}
# Mounts a source on a name in a directory of the agent.
refused_in_home() {
    refused_movable --jail-path "$root" --mount "$1" && no_mount_of
    answer=$?
    rm -rf "${root:?}/tmp/home"
    return "$answer"
}
swapped_file() {
    install -d -o "$AG" "$root/tmp/home" && install -o "$AG" /dev/null "$root/tmp/home/file" || return 1
    refused_in_home "$work/project/given:/tmp/home/file:ro"
}
# rename(2) to a mount point never returns in FreeBSD 15.1 (docs/decisions/0029), so no agent may be able to do that.
movable_target() {
    install -d -o "$AG" "$root/tmp/home" && mkdir -p "$root/tmp/home/point" || return 1
    refused_in_home "$work/project:/tmp/home/point"
}
movable_devices() {
    mkdir -p "$work/root4/dev" && cp -Rxl "$root/bin" "$root/lib" "$root/libexec" "$root/etc" "$work/root4/" && chown "$AG" "$work/root4" || return 1
    refused_movable --jail-path "$work/root4" --jail-devfs && ! mount -p | grep -q "$work/root4"
}
renamed_onto() {
    df -T "$root" | grep -q ' ufs ' || {
        directive=' # SKIP needs UFS: others than root can do it on ZFS'
        return 0
    }
    mkdir -p "$root/tmp/held"
    for point in /tmp/held /work; do
        run colibri run --jail-path "$root" --jail-user "$AG" --mount "$work/project:$point" -- \
            /bin/sh -c "mkdir /tmp/mine && exec /bin/attack rename /tmp/mine $point"
        rmdir "$root/tmp/mine" && exits 1 && stderr_has 'not permitted\|denied' || return 1
    done
    no_mount_of
}
# Root in a jail renames the directory on which the next agent's devfs is mounted.
swapped_devfs() {
    mkdir -p "$work/root3/dev" "$work/root3/other" && cp -Rxl "$root/bin" "$root/lib" "$root/libexec" "$work/root3/" || return 1
    spawn --jail-path "$work/root3" -- /bin/attack swap / dev other && eventually logged swapping || return 1
    tries=15 ran=0
    while [ $tries -gt 0 ]; do
        run colibri run --jail-path "$work/root3" --jail-devfs -- /bin/echo ran
        ! exits 0 || ran=$((ran + 1))
        tries=$((tries - 1))
        ! mount -p | grep -q "$work/root3" || break
    done
    end_swapper && [ $tries = 0 ] && [ $ran -gt 0 ] && ! mount -p | grep -q "$work/root3"
}

attack 'mount: a target that is exchanged with a link to the host' swapped_target
attack 'mount: a source that is exchanged with a link to the host' swapped_source
attack 'mount: a file of it is kept open' kept_open
attack 'mount: a mount of the administrator on its path' mount_of_others
attack 'mount: a file in a directory of the agent' swapped_file
attack 'mount: a target in a directory of the agent' movable_target
attack 'mount: device files in a root of the agent' movable_devices
attack 'mount: rename(2) to a mount point' renamed_onto
attack 'mount: a directory for device files that is exchanged' swapped_devfs

kill -TERM "$daemon" 2>/dev/null
daemon=''
