//! The parts of a Linux sandbox that depend on the host: masks, the home directory, the user, held files.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use colibri_jail_core::{
    CommandLine, EphemeralJail, HostUser, JailPath, JailUser, Limits, Mount, PathError, Protection,
    Restriction, View,
};
use colibri_sys::known_daemons::KnownDaemons;
use colibri_types::HeldFile;

use crate::doctor::is_host_root;
use crate::mountinfo::MountTable;
use crate::{PrepareError, Preparer, worktree};

/// Directories and files of the host in which sockets of the user's and the system's services are, or which are secret.
/// Masked in every view where they exist. Those in a home directory are in [`PRIVATE_IN_HOME`].
const PRIVATE_ON_HOST: &[&str] = &[
    "/etc/shadow",
    "/etc/shadow-",
    "/etc/gshadow",
    "/etc/gshadow-",
    "/etc/ssl/private",
    "/etc/sudoers",
    "/etc/sudoers.d",
    "/etc/krb5.keytab",
    "/etc/wireguard",
    "/etc/NetworkManager/system-connections",
    "/run/user",
    "/run/dbus",
    "/run/docker.sock",
    "/run/docker",
    "/run/podman",
    "/run/containerd",
    "/run/crio",
    "/run/libvirt",
    "/run/lxd",
    "/run/incus",
    "/run/nscd",
    "/run/systemd",
    "/run/screen",
    "/run/tmux",
    "/run/snapd.socket",
    "/run/snapd-snap.socket",
    "/run/acpid.socket",
    "/run/avahi-daemon",
    "/run/cups",
    "/run/pcscd",
    "/run/uuidd",
    "/run/udev/control",
    "/run/rpcbind.sock",
    "/run/mysqld",
    "/run/postgresql",
    "/run/gssproxy.sock",
    "/run/colibri",
    "/run/colibri-users",
    "/var/run/colibri",
    "/var/lib/docker",
    "/var/lib/containerd",
    "/var/lib/lxd",
    "/var/lib/incus",
    "/var/lib/sss/pipes",
    "/var/spool/cron",
    "/var/spool/at",
    "/nix/var/nix/daemon-socket",
];

/// As [`PRIVATE_ON_HOST`], in the home directory of the daemon's user.
const PRIVATE_IN_HOME: &[&str] = &[
    ".ssh/agent",
    ".gnupg",
    ".screen",
    ".tmux",
    ".docker/run",
    ".docker/desktop",
    ".colima",
    ".lima",
    ".rd",
    ".local/share/containers/podman",
    ".orbstack",
    ".emacs.d/server",
    ".dbus",
    ".ICEauthority",
    ".Xauthority",
];

/// Maximum number of processes and threads of an agent without the limit `processes`, where it can be enforced.
pub(crate) const SANDBOX_PROCESSES: u32 = 4096;
/// List of all Unix sockets of the network namespace (proc(5)).
const UNIX_SOCKETS: &str = "/proc/net/unix";
/// Maximum number of masks of sockets that are found there.
const MAX_SOCKETS: usize = 256;
/// File that names the servers of name lookups.
const RESOLV_CONF: &str = "/etc/resolv.conf";

impl Preparer {
    /// Returns whether colibri-sandbox completes the sandboxes of this preparer.
    pub(crate) fn completes_sandbox(&self) -> bool {
        self.engine.completes_sandbox() && self.backend.runs_as_caller()
    }

    /// Sets the fields of a sandbox that depend on the host, and adds the mounts of git worktrees. `home` is the agent's variable `HOME`.
    ///
    /// # Errors
    /// A mount shows what no agent may see.
    pub(crate) fn complete_sandbox(
        &self,
        jail: &mut EphemeralJail,
        home: Option<&str>,
        limits: &Limits,
    ) -> Result<(), PrepareError> {
        jail.sandbox.completed = true;
        worktree::add_mounts(jail);
        jail.sandbox.home_path = home
            .and_then(|home| home.parse().ok())
            .filter(|home| *home != JailPath::root());
        if jail.sandbox.home.is_some() && jail.sandbox.home_path.is_none() {
            let problem =
                "needs the variable HOME, an absolute path without links; set it with `env`";
            return Err(PathError::new(
                "home",
                jail.sandbox.home.as_ref().map_or("", |path| path.as_str()),
                problem,
            )
            .into());
        }
        if jail.path == JailPath::root() && jail.sandbox.view == View::Minimal {
            jail.sandbox.shown = shown_settings();
        }
        jail.sandbox.open_files = limits.open_files;
        if is_host_root() {
            jail.sandbox.host_user = host_user(jail.user.as_ref());
            if jail.sandbox.host_user == HostUser::Private {
                jail.sandbox.processes = Some(limits.processes.unwrap_or(SANDBOX_PROCESSES));
            }
        }
        let requested = std::mem::take(&mut jail.sandbox.denied);
        let user_home = std::env::home_dir();
        reject_exposing_mounts(jail, &self.private_paths(), user_home.as_deref())?;
        let mut denied: BTreeSet<JailPath> = requested.into_iter().collect();
        denied.extend(self.hidden_paths(jail, user_home.as_deref()));
        jail.sandbox.denied = denied.into_iter().collect();
        Ok(())
    }

    /// Returns the paths in the jail that show sockets and secrets of the host.
    fn hidden_paths(&self, jail: &EphemeralJail, home: Option<&Path>) -> Vec<JailPath> {
        let table = mount_table();
        let in_home = PRIVATE_IN_HOME
            .iter()
            .filter_map(|path| Some(home?.join(path)));
        let mut private: Vec<PathBuf> = PRIVATE_ON_HOST
            .iter()
            .map(PathBuf::from)
            .chain(in_home)
            .collect();
        if jail.sandbox.applies(Restriction::UnixSockets) {
            private.extend(bound_sockets());
        }
        let mut hidden = Vec::new();
        for path in private {
            let Ok(real) = path.canonicalize() else {
                continue;
            };
            for alias in table.aliases(&real) {
                hidden.extend(self.paths_inside(jail, &alias));
            }
        }
        hidden
    }

    /// Returns the paths in the jail that show a path of the host.
    fn paths_inside(&self, jail: &EphemeralJail, path: &Path) -> Vec<JailPath> {
        let parse = |path: &Path| path.to_str()?.parse::<JailPath>().ok();
        let mut inside = Vec::new();
        if let Ok(inner) = path.strip_prefix(jail.path.as_str())
            && let Some(found) = parse(&Path::new("/").join(inner))
        {
            let is_private = self
                .engine
                .private_directories()
                .iter()
                .any(|private| found.is_in(private));
            if !is_private && !self.engine.hidden_by_view(jail, &found) {
                inside.push(found);
            }
        }
        for mount in &jail.mounts {
            if let Ok(inner) = path.strip_prefix(mount.source.as_str())
                && let Some(found) = parse(&Path::new(mount.target.as_str()).join(inner))
            {
                inside.push(found);
            }
        }
        inside
    }

    /// Returns the real paths of what no agent may see.
    fn private_paths(&self) -> Vec<PathBuf> {
        let mut private = self.private_directories.clone();
        if self.completes_sandbox() {
            private.extend(self.private_files.iter().cloned());
            private.extend(
                self.known_daemons
                    .iter()
                    .flat_map(KnownDaemons::private_paths),
            );
        }
        let real = private.iter().filter_map(|path| path.canonicalize().ok());
        real.collect()
    }

    /// Returns every path of the host at which something private is visible.
    pub(crate) fn protected_aliases(&self) -> Vec<PathBuf> {
        let table = mount_table();
        let real = self.private_paths().into_iter();
        let aliases = real.flat_map(|path| table.aliases(&path));
        // A covered alias may not exist, and a path that does not exist needs no mask.
        aliases.filter(|alias| alias.exists()).collect()
    }

    /// Identifies the files that the shim opens for the runs of an agent.
    pub(crate) fn held_files(&self, jail: &EphemeralJail) -> Result<Vec<HeldFile>, PrepareError> {
        let held = self.engine.held_paths(jail).into_iter().map(|held| {
            let path = held.path.as_str();
            let data = fs::symlink_metadata(path).map_err(|error| {
                PathError::new("mount source", path, crate::mounts::unusable(&error))
            })?;
            Ok(HeldFile {
                descriptor: held.descriptor,
                path: path.to_owned(),
                device: data.dev(),
                inode: data.ino(),
            })
        });
        held.collect()
    }
}

/// Returns the command that removes the placeholders of protected paths after each run.
pub(crate) fn clean_command(program: &str, jail: &EphemeralJail) -> Option<CommandLine> {
    let has_placeholders =
        |mount: &&Mount| !mount.read_only && mount.protection != Protection::Nothing;
    let writable = jail.mounts.iter().filter(has_placeholders);
    let sources: Vec<&str> = writable.map(|mount| mount.source.as_str()).collect();
    if sources.is_empty() {
        return None;
    }
    CommandLine::new(program, std::iter::once("clean").chain(sources)).ok()
}

/// Returns the user of an agent of a root daemon: the one that the request names, and never root.
fn host_user(user: Option<&JailUser>) -> HostUser {
    match user {
        Some(JailUser::Id { uid, gid }) => match (*uid, gid.unwrap_or(*uid)) {
            (0, _) | (_, 0) => HostUser::Private,
            (uid, gid) => HostUser::Ids { uid, gid },
        },
        _ => HostUser::Private,
    }
}

/// Returns the files that settings in the minimal view name by links out of it.
fn shown_settings() -> Vec<JailPath> {
    let real = Path::new(RESOLV_CONF).canonicalize().ok();
    let outside = real.filter(|real| !real.starts_with("/etc"));
    outside
        .and_then(|path| path.to_str()?.parse().ok())
        .into_iter()
        .collect()
}

fn mount_table() -> MountTable {
    MountTable::parse(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

/// Returns the paths of sockets that processes of this network namespace have bound.
fn bound_sockets() -> Vec<PathBuf> {
    let listed = fs::read(UNIX_SOCKETS).unwrap_or_default();
    let listed = String::from_utf8_lossy(&listed);
    // The path follows seven fields; abstract names begin with @.
    let paths = listed.lines().filter_map(|line| {
        let path = line.splitn(8, ' ').nth(7)?;
        let start = path.find('/')?;
        path.get(start..).map(PathBuf::from)
    });
    let unique: BTreeSet<PathBuf> = paths.collect();
    unique.into_iter().take(MAX_SOCKETS).collect()
}

/// Refuses mounts by which an agent could reach the daemon or change how the user works.
fn reject_exposing_mounts(
    jail: &EphemeralJail,
    private: &[PathBuf],
    home: Option<&Path>,
) -> Result<(), PrepareError> {
    let table = mount_table();
    let refuse = |mount: &Mount, problem: String| {
        Err(PathError::new("mount source", &mount.source, problem).into())
    };
    for mount in &jail.mounts {
        let source = Path::new(mount.source.as_str());
        let is_socket = source
            .symlink_metadata()
            .is_ok_and(|data| data.file_type().is_socket());
        if is_socket && jail.sandbox.applies(Restriction::UnixSockets) {
            let problem = "is a socket of the host, by which an agent could leave the sandbox; remove it, or lift the restriction unix-sockets";
            return refuse(mount, problem.to_owned());
        }
        if mount.read_only {
            continue;
        }
        if source == Path::new("/") || home.is_some_and(|home| home.starts_with(source)) {
            let problem = "is the home directory or contains it, and would be writable; give a directory of a project, or add :ro";
            return refuse(mount, problem.to_owned());
        }
        let inside = private.iter().find(|path| {
            let aliases = table.aliases(path);
            aliases.iter().any(|alias| alias.starts_with(source))
        });
        if let Some(inside) = inside {
            let problem = format!(
                "contains {} of the daemon, and would be writable; give another directory, or add :ro",
                inside.display()
            );
            return refuse(mount, problem);
        }
        if jail.path != JailPath::root() && Path::new(jail.path.as_str()).starts_with(source) {
            let problem = format!(
                "contains the root directory {}, and would be writable; give another directory",
                jail.path
            );
            return refuse(mount, problem);
        }
    }
    Ok(())
}
