//! The user of an agent of a root daemon: never root, and the owner of its mounts by ID-mapped mounts.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use colibri_sys::descriptors::{duplicate_to, place_at, take_inherited};
use colibri_sys::{kernel, mounts, regular_file};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{
    CWD, FlockOperation, Gid, MemfdFlags, Mode, OFlags, Uid, flock, fstat, memfd_create, openat,
};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, mount, mount_change, move_mount,
};

use crate::options::User;
use crate::paths::{clone_tree, open_path};
use crate::{SandboxError, cannot};

/// First of the uids of agents: outside of the ranges that systemd, containers and distributions use
/// (<https://systemd.io/UIDS-GIDS/>).
const FIRST_UID: u32 = 1_895_825_408;
/// Number of the uids of agents.
const UIDS: u32 = 8192;
/// Directory of the locks of these uids.
const LOCKS: &str = "/run/colibri-users";
/// Name of the private user in the sandbox.
const USER: &str = "colibri-agent";
/// Maximum size of a user table, in bytes.
const MAX_TABLE: u64 = 16 << 20;
/// Timeout for the process that creates a user namespace.
const HOLDER_TIMEOUT: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};
/// Mount point for the mounts of one agent, in its own mount namespace.
const STAGE: &str = "/run/colibri-stage";

/// Gives this process separate mounts, in which the held files belong to the user, and becomes the user. The descriptor
/// `program` is placed in these mounts with its owner unchanged, because the user may be unable to reach its path.
pub(crate) fn become_user(
    user: User,
    held: &[i32],
    program: Option<i32>,
) -> Result<(), SandboxError> {
    let (uid, gid) = match user {
        User::Ids { uid, gid } => (uid, gid),
        User::Private => {
            let uid = reserve_uid()?;
            (uid, uid)
        }
        User::Caller => return Ok(()),
    };
    stage(held, program, uid, gid)?;
    set_user(uid, gid).map_err(cannot(format!("become user {uid}")))
}

fn set_user(uid: u32, gid: u32) -> io::Result<()> {
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(group, group, group)?;
    rustix::thread::set_thread_res_uid(user, user, user)?;
    let ids = [rustix::process::getuid(), rustix::process::geteuid()];
    match ids.iter().all(|id| id.as_raw() == uid && uid != 0) {
        true => Ok(()),
        false => Err(io::Error::other("the user did not change")),
    }
}

/// Reserves a uid until all processes of the sandbox have ended: its init process inherits the lock.
fn reserve_uid() -> Result<u32, SandboxError> {
    create_directory(LOCKS, 0o700)?;
    // Start at different uids, so that few locks are tried.
    let map =
        fs::read_to_string("/proc/self/uid_map").map_err(cannot("read the mapping of uids"))?;
    let (first, count) = available_uids(&map).ok_or(
        "no uid for an agent: the user namespace of this process maps too few; start the daemon outside of it, or as an ordinary user",
    )?;
    let start = std::process::id() % count;
    for number in (start..count).chain(0..start) {
        let uid = first + number;
        let path = Path::new(LOCKS).join(uid.to_string());
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock = openat(CWD, &path, flags, Mode::from_raw_mode(0o600))
            .map_err(cannot(format!("open {}", path.display())))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                fcntl_setfd(&lock, FdFlags::empty()).map_err(cannot("keep the lock of a uid"))?;
                // Held by the open descriptor, until the last process that has it ends.
                std::mem::forget(lock);
                return Ok(uid);
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(error) => return Err(cannot(format!("lock {}", path.display()))(error)),
        }
    }
    Err(format!(
        "all {count} uids of agents are in use; end agents, or give a user with --jail-user"
    )
    .into())
}

/// Returns the first uid for agents and their number: the reserved range, or in a user namespace that lacks it the end of another
/// one, without uid 0 and the last one, which often has the special id 65534.
fn available_uids(map: &str) -> Option<(u32, u32)> {
    let ranges = map.lines().filter_map(|line| {
        let mut fields = line
            .split_whitespace()
            .map(|field| field.parse::<u32>().ok());
        let (first, _, count) = (fields.next()??, fields.next()??, fields.next()??);
        Some((first, first.checked_add(count)?))
    });
    let ranges: Vec<(u32, u32)> = ranges.collect();
    let has_reserved = |(first, end): &(u32, u32)| *first <= FIRST_UID && *end >= FIRST_UID + UIDS;
    if ranges.iter().any(has_reserved) {
        return Some((FIRST_UID, UIDS));
    }
    let (first, end) = ranges.into_iter().max_by_key(|(first, end)| end - first)?;
    let end = end.saturating_sub(2);
    let first = end.saturating_sub(UIDS).max(first).max(1000);
    (end > first).then(|| (first, end - first))
}

fn create_directory(path: &str, mode: u32) -> Result<(), SandboxError> {
    let created = match fs::create_dir(path) {
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(mode)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    };
    created.map_err(cannot(format!("create {path}")))
}

/// Opens the user tables of the host, with the agent's user added, as descriptors of these numbers.
pub(crate) fn open_user_tables(numbers: (i32, i32), uid: u32) -> io::Result<()> {
    let home = std::env::var("HOME").unwrap_or_else(|_| "/".to_owned());
    let home = home.replace([':', '\n'], "_");
    let entries = [
        (
            numbers.0,
            "/etc/passwd",
            format!("{USER}:x:{uid}:{uid}::{home}:/bin/sh\n"),
        ),
        (numbers.1, "/etc/group", format!("{USER}:x:{uid}:\n")),
    ];
    for (number, path, entry) in entries {
        let table = regular_file::read(Path::new(path), MAX_TABLE)?;
        let mut file = File::from(memfd_create(path, MemfdFlags::CLOEXEC)?);
        file.write_all(entry.as_bytes())?;
        file.write_all(&table)?;
        file.rewind()?;
        place_at(file.into(), number)?;
    }
    Ok(())
}

/// Replaces the held descriptors by those of mounts that belong to the user, and `program` by that of a mount.
fn stage(held: &[i32], program: Option<i32>, uid: u32, gid: u32) -> Result<(), SandboxError> {
    let mut copies = Vec::new();
    // The copies come from the mounts of the host, which the new namespace lacks.
    for number in held.iter().copied().chain(program) {
        let source =
            take_inherited(number).ok_or_else(|| format!("descriptor {number} is not open"))?;
        let copy = match program == Some(number) {
            true => clone_tree(&source).map_err(cannot("copy the mount of this program"))?,
            false => copy_for_user(&source, uid, gid)?,
        };
        copies.push((number, copy, source));
    }
    let failed = |what: &str| cannot::<io::Error>(format!("{what} for an agent's mounts"));
    let separate = || -> io::Result<()> {
        kernel::unshare_mounts()?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        Ok(mount_change("/", private)?)
    };
    separate().map_err(failed("create a namespace"))?;
    if copies.is_empty() {
        return Ok(());
    }
    create_directory(STAGE, 0o755)?;
    mount(
        "tmpfs",
        STAGE,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        c"mode=755,size=1m",
    )
    .map_err(|error| failed("mount a directory")(error.into()))?;
    for (number, copy, source) in copies {
        let path = format!("{STAGE}/{number}");
        let is_directory = rustix::fs::FileType::from_raw_mode(fstat(&source)?.st_mode).is_dir();
        match is_directory {
            true => fs::create_dir(&path),
            false => File::create(&path).map(drop),
        }
        .map_err(cannot(format!("create {path}")))?;
        drop(source);
        move_mount(
            &copy,
            "",
            CWD,
            &path,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
        .map_err(cannot(format!("mount {path}")))?;
        let staged = open_path(Path::new(&path)).map_err(cannot(format!("open {path}")))?;
        duplicate_to(&staged, number).map_err(cannot(format!("use descriptor {number}")))?;
    }
    Ok(())
}

/// Returns a copy of the mount of a file that shows its owner as the user, and its group as that of the user.
fn copy_for_user(source: &OwnedFd, uid: u32, gid: u32) -> Result<OwnedFd, SandboxError> {
    let copy = clone_tree(source).map_err(cannot("copy the mount of an agent"))?;
    let owner = fstat(source).map_err(cannot("read the owner of a mount"))?;
    if owner.st_uid == uid {
        return Ok(copy);
    }
    let namespace = namespace((owner.st_uid, uid), (owner.st_gid, gid))
        .map_err(cannot("create a user namespace for the owners of a mount"))?;
    match mounts::map_owners(&copy, &namespace) {
        Ok(()) => Ok(copy),
        Err(error) => {
            let path = fs::read_link(format!(
                "/proc/self/fd/{}",
                std::os::fd::AsRawFd::as_raw_fd(source)
            ));
            let path = path.unwrap_or_default();
            Err(format!(
                "cannot give user {uid} the mount {}, which belongs to user {}: {error}; the file system may lack ID-mapped mounts: give the owner with --jail-user {}:{}, or change the owner with chown(8)",
                path.display(), owner.st_uid, owner.st_uid, owner.st_gid
            )
            .into())
        }
    }
}

/// Returns a user namespace that maps one user and one group: each an id inside and one outside.
fn namespace(user: (u32, u32), group: (u32, u32)) -> io::Result<OwnedFd> {
    let mut holder = Command::new("/proc/self/exe")
        .arg("hold-namespace")
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let created = (|| {
        let mut output = holder.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let mut polled = [PollFd::new(&output, PollFlags::IN)];
        if poll(&mut polled, Some(&HOLDER_TIMEOUT))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        output.read_exact(&mut [0])?;
        let directory = format!("/proc/{}", holder.id());
        for (file, (inside, outside)) in [("uid_map", user), ("gid_map", group)] {
            fs::write(
                format!("{directory}/{file}"),
                format!("{inside} {outside} 1\n"),
            )?;
        }
        Ok(File::open(format!("{directory}/ns/user"))?.into())
    })();
    // The end of its input ends it.
    drop(holder.stdin.take());
    if created.is_err() {
        let _ = holder.kill();
    }
    holder.wait()?;
    created
}

/// The process that creates a user namespace, and holds it until the end of its input.
pub(crate) fn hold_namespace() -> Result<ExitCode, SandboxError> {
    kernel::unshare_users().map_err(cannot("create a user namespace"))?;
    io::stdout().write_all(b"1")?;
    io::stdout().flush()?;
    let _ = io::stdin().read(&mut [0]);
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_of_agents_are_mapped() {
        for (map, expected) in [
            ("0 0 4294967295\n", Some((FIRST_UID, UIDS))),
            ("0 100000 65536\n", Some((65534 - UIDS, UIDS))),
            ("0 1000 1\n1 100000 2000\n", Some((1000, 999))),
            ("0 0 1\n", None),
            ("0 0 1000\n", None),
            ("", None),
        ] {
            assert_eq!(available_uids(map), expected, "{map:?}");
        }
    }
}
