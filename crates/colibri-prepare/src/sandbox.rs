//! The parts of a Linux sandbox that depend on the host: masks, the home directory, the user, held files.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use colibri_jail_core::{
    CommandLine, EphemeralJail, HostUser, JailError, JailPath, JailUser, Limits, Mount, PathError,
    Protection, Restriction, View, host_path,
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

/// Stands for the home of an agent that is only explained.
const HOME_PLACEHOLDER: &str = "/home-of-the-agent";

/// Maximum number of processes and threads of an agent without the limit `processes`, where it can be enforced.
pub(crate) const SANDBOX_PROCESSES: u32 = 4096;
/// List of all Unix sockets of the network namespace (proc(5)).
const UNIX_SOCKETS: &str = "/proc/net/unix";
/// Maximum number of masks of sockets that are found there.
const MAX_SOCKETS: usize = 512;
/// List of the mounts of this process (proc_pid_mountinfo(5)).
const MOUNTS: &str = "/proc/self/mountinfo";
/// File that names the servers of name lookups.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What no agent may see, and the mounts by which it is visible, at one moment.
#[derive(Default)]
pub(crate) struct PrivateHostPaths {
    /// Real paths of private directories and files.
    private: Vec<PathBuf>,
    mounts: MountTable,
}

impl PrivateHostPaths {
    /// Returns every path of the host at which something private is visible.
    pub(crate) fn aliases(&self) -> Vec<PathBuf> {
        let private = self.private.iter();
        let aliases = private.flat_map(|path| self.mounts.aliases_and_parts(path));
        // A covered alias may not exist, and a path that does not exist needs no mask.
        aliases.filter(|alias| alias.exists()).collect()
    }
}

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
        host: &PrivateHostPaths,
    ) -> Result<(), PrepareError> {
        jail.sandbox.completed = true;
        if jail.sandbox.has_home_files && jail.sandbox.home.is_none() {
            // Only explained: a spawn names the home that it has made.
            jail.sandbox.home = HOME_PLACEHOLDER.parse().ok();
        }
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
        jail.sandbox.processes = Some(limits.processes.unwrap_or(SANDBOX_PROCESSES));
        if is_host_root() {
            jail.sandbox.host_user = host_user(jail.user.as_ref());
        }
        let user_home = std::env::home_dir();
        let programs = self.engine.programs().paths;
        let programs: Vec<PathBuf> = programs
            .iter()
            .map(PathBuf::from)
            .chain(std::env::current_exe().ok())
            .collect();
        reject_exposing_mounts(jail, host, &programs, user_home.as_deref())?;
        reject_second_views(jail)?;
        let mut hidden = self.hidden_paths(jail, &host.mounts, user_home.as_deref())?;
        hidden.extend(self.denied_aliases(jail, &host.mounts));
        hidden.sort();
        hidden.dedup();
        jail.sandbox.hidden = hidden;
        // What the view hides needs no mask.
        let mut masked = std::mem::take(&mut jail.masked);
        masked.retain(|path| {
            let is_mounted = host_path(&jail.mounts, Path::new(path.as_str())).is_some();
            is_mounted || !self.engine.hidden_by_view(jail, path)
        });
        jail.masked = masked;
        let repositories = worktree::repositories_inside(jail)?;
        let mut read_only = worktree::referenced_paths(jail, &repositories, user_home.as_deref())?;
        read_only.extend(repositories.links);
        read_only.sort();
        read_only.dedup();
        jail.sandbox.read_only = read_only;
        jail.sandbox.git_directories = repositories.directories;
        Ok(())
    }

    /// Returns the paths in the jail that show sockets and secrets of the host.
    ///
    /// # Errors
    /// The source of a mount is in a private path, or the sockets cannot be listed.
    fn hidden_paths(
        &self,
        jail: &EphemeralJail,
        table: &MountTable,
        home: Option<&Path>,
    ) -> Result<Vec<JailPath>, PrepareError> {
        let in_home = PRIVATE_IN_HOME
            .iter()
            .filter_map(|path| Some(home?.join(path)));
        let private = PRIVATE_ON_HOST.iter().map(PathBuf::from).chain(in_home);
        let aliases = |path: PathBuf| match path.canonicalize() {
            Ok(real) => table.aliases_and_parts(&real),
            Err(_) => Vec::new(),
        };
        let private: Vec<PathBuf> = private.flat_map(aliases).collect();
        for mount in &jail.mounts {
            let source = Path::new(mount.source.as_str());
            if let Some(path) = private.iter().find(|path| source.starts_with(path)) {
                let problem = format!(
                    "is or is in {}, which no agent may see; mount a copy of what the agent needs",
                    path.display()
                );
                return Err(PathError::new("mount source", &mount.source, problem).into());
            }
        }
        let mut hidden: Vec<JailPath> = private
            .into_iter()
            .flat_map(|path| self.paths_inside(jail, &path))
            .collect();
        if jail.sandbox.applies(Restriction::UnixSockets) {
            let mut sockets = BTreeSet::new();
            for path in bound_sockets()? {
                let shown = |path: &PathBuf| !self.paths_inside(jail, path).is_empty();
                // Only those that the sandbox would show are looked up.
                if table.aliases(&path).iter().any(shown) && is_socket(&path) {
                    sockets.extend(
                        aliases(path)
                            .iter()
                            .flat_map(|alias| self.paths_inside(jail, alias)),
                    );
                }
            }
            if sockets.len() > MAX_SOCKETS {
                return Err(JailError::Unsupported(format!(
                    "the sandbox would show {} sockets of the host, more than the {MAX_SOCKETS} that can be masked; give the view minimal or fewer mounts, or lift the restriction unix-sockets",
                    sockets.len()
                ))
                .into());
            }
            hidden.extend(sockets);
        }
        Ok(hidden)
    }

    /// Returns the other paths in the jail that show what a denied path does.
    fn denied_aliases(&self, jail: &EphemeralJail, table: &MountTable) -> Vec<JailPath> {
        let real = jail.sandbox.denied.iter().filter_map(|path| {
            let path = Path::new(path.as_str());
            let on_host = host_path(&jail.mounts, path).unwrap_or_else(|| {
                Path::new(jail.path.as_str()).join(path.strip_prefix("/").unwrap_or(path))
            });
            on_host.canonicalize().ok()
        });
        let aliases = real.flat_map(|path| table.aliases_and_parts(&path));
        let shown: Vec<JailPath> = aliases
            .flat_map(|path| self.paths_inside(jail, &path))
            .collect();
        let is_other = |path: &JailPath| !jail.sandbox.denied.contains(path);
        shown.into_iter().filter(is_other).collect()
    }

    /// Returns the paths in the jail that show a path of the host.
    fn paths_inside(&self, jail: &EphemeralJail, path: &Path) -> Vec<JailPath> {
        let mut inside = Vec::new();
        let in_root = path.strip_prefix(jail.path.as_str()).ok();
        let in_root: Option<JailPath> =
            in_root.and_then(|inner| Path::new("/").join(inner).to_str()?.parse().ok());
        if let Some(found) = in_root {
            let is_private = self
                .engine
                .private_directories()
                .iter()
                .any(|private| found.is_in(private));
            if !is_private && !self.engine.hidden_by_view(jail, &found) {
                inside.push(found);
            }
        }
        inside.extend(jail.mounts.iter().filter_map(|mount| mount.inside(path)));
        inside
    }

    /// Reads the mounts of the host and finds what no agent may see.
    ///
    /// # Errors
    /// The mounts cannot be read.
    pub(crate) fn private_host_paths(&self) -> Result<PrivateHostPaths, PrepareError> {
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
        let private = real.collect();
        let mounts = match fs::read_to_string(MOUNTS) {
            Ok(text) => MountTable::parse(&text),
            // Other systems have no such list, and no sandboxes that need it.
            Err(_) if cfg!(not(target_os = "linux")) => MountTable::default(),
            Err(error) => return Err(unreadable(MOUNTS, &error)),
        };
        Ok(PrivateHostPaths { private, mounts })
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

/// Returns the command that removes the placeholders of protected paths after each run, and links in directories of repositories.
pub(crate) fn clean_command(program: &str, jail: &EphemeralJail) -> Option<CommandLine> {
    let mut words = vec!["clean".to_owned()];
    let mut add = |option: &str, path: &Path| {
        if let Some(path) = path.to_str() {
            words.extend([option.to_owned(), path.to_owned()]);
        }
    };
    for mount in jail.mounts.iter().filter(|mount| !mount.read_only) {
        let source = Path::new(mount.source.as_str());
        match mount.protection {
            Protection::Project => add("--workspace", source),
            Protection::GitDirectory => {
                add("--git", source);
                if let Some(repository) = source.ancestors().nth(2) {
                    add("--logs", &repository.join("logs"));
                }
            }
            Protection::Nothing => {}
        }
    }
    let inside = |option, paths: &[JailPath]| {
        let on_host = paths
            .iter()
            .filter_map(|path| host_path(&jail.mounts, Path::new(path.as_str())));
        on_host
            .map(|path| (option, path))
            .collect::<Vec<(&str, PathBuf)>>()
    };
    let git = inside("--git", &jail.sandbox.git_directories);
    for (option, path) in git
        .into_iter()
        .chain(inside("--path", &jail.sandbox.read_only))
    {
        add(option, &path);
    }
    let is_empty = words.len() == 1;
    let command = CommandLine::new(program, words).ok();
    command.filter(|_| !is_empty)
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

/// Returns the paths of sockets that processes of this network namespace have bound, as they named them.
fn bound_sockets() -> Result<BTreeSet<PathBuf>, PrepareError> {
    let listed = match fs::read(UNIX_SOCKETS) {
        Ok(listed) => listed,
        // A kernel without Unix sockets.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(unreadable(UNIX_SOCKETS, &error)),
    };
    let listed = String::from_utf8_lossy(&listed);
    // The name follows seven fields. Other users choose names too: an abstract one begins with @, and a relative one with any text.
    let paths = listed.lines().filter_map(|line| {
        let mut rest = line;
        for _ in 0..7 {
            rest = rest.trim_start_matches(' ').split_once(' ')?.1;
        }
        let path = Path::new(rest);
        path.is_absolute().then(|| path.to_owned())
    });
    Ok(paths.collect())
}

fn is_socket(path: &Path) -> bool {
    let data = path.symlink_metadata();
    data.is_ok_and(|data| data.file_type().is_socket())
}

/// Returns the error for a list of the kernel that cannot be read.
fn unreadable(path: &str, error: &io::Error) -> PrepareError {
    JailError::Unsupported(format!(
        "cannot read {path}, by which paths are hidden from the agent: {error}; mount the whole proc(5) at /proc"
    ))
    .into()
}

/// Refuses mounts by which an agent could reach the daemon or change how the user works. `programs` are those of Colibri.
fn reject_exposing_mounts(
    jail: &EphemeralJail,
    host: &PrivateHostPaths,
    programs: &[PathBuf],
    home: Option<&Path>,
) -> Result<(), PrepareError> {
    for mount in &jail.mounts {
        let source = Path::new(mount.source.as_str());
        if is_socket(source) && jail.sandbox.applies(Restriction::UnixSockets) {
            let problem = "is a socket of the host, by which an agent could leave the sandbox; remove it, or lift the restriction unix-sockets";
            return Err(PathError::new("mount source", &mount.source, problem).into());
        }
    }
    // The paths that must not be in a writable source, and what each is.
    let aliases = |path: &Path, what: &'static str| {
        let real = path.canonicalize().ok();
        let aliases = real
            .map(|real| host.mounts.aliases(&real))
            .unwrap_or_default();
        aliases.into_iter().map(move |alias| (alias, what))
    };
    let private = |path: &Path| {
        let aliases = host.mounts.aliases_and_parts(path);
        aliases
            .into_iter()
            .map(|alias| (alias, "a private path of a daemon"))
    };
    let root = (jail.path != JailPath::root()).then_some(Path::new(jail.path.as_str()));
    let exposed: Vec<(PathBuf, &str)> = home
        .into_iter()
        .flat_map(|home| aliases(home, "the home directory"))
        .chain(host.private.iter().flat_map(|path| private(path)))
        .chain(
            programs
                .iter()
                .flat_map(|path| aliases(path, "a program of Colibri")),
        )
        .chain(
            root.into_iter()
                .flat_map(|root| aliases(root, "the root directory of the jail")),
        )
        .collect();
    let writable = jail.mounts.iter().filter(|mount| !mount.read_only);
    let sources = writable
        .map(|mount| ("mount source", &mount.source))
        .chain(jail.sandbox.home.iter().map(|home| ("home", home)));
    for (kind, source) in sources {
        let found = exposed
            .iter()
            .find(|(path, _)| path.starts_with(source.as_str()));
        if let Some((path, what)) = found {
            let problem = format!(
                "is or contains {}, {what}, and would be writable; give a directory of a project, or add :ro",
                path.display()
            );
            return Err(PathError::new(kind, source, problem).into());
        }
    }
    Ok(())
}

/// Returns the writable mounts with the protected paths of a project.
pub(crate) fn projects(jail: &EphemeralJail) -> impl Iterator<Item = &Mount> {
    let mounts = jail.mounts.iter();
    mounts.filter(|mount| !mount.read_only && mount.protection == Protection::Project)
}

/// Refuses mounts that show a part of another writable mount a second time, where its protected paths are writable.
fn reject_second_views(jail: &EphemeralJail) -> Result<(), PrepareError> {
    let home = jail
        .sandbox
        .home
        .as_ref()
        .zip(jail.sandbox.home_path.as_ref());
    let writable: Vec<(&JailPath, &JailPath)> = projects(jail)
        .map(|mount| (&mount.source, &mount.target))
        .collect();
    let all = writable.iter().copied().chain(home);
    for (outer_source, outer_target) in all {
        for (source, target) in &writable {
            let Ok(inner) = Path::new(source.as_str()).strip_prefix(outer_source.as_str()) else {
                continue;
            };
            let shown = Path::new(outer_target.as_str()).join(inner);
            // The inner mount covers that part of the outer one.
            if shown
                .components()
                .ne(Path::new(target.as_str()).components())
            {
                let problem = format!(
                    "is also shown at {} by the mount of {outer_source}, where its protected paths would be writable; remove one of them",
                    shown.display()
                );
                return Err(PathError::new("mount source", source, problem).into());
            }
        }
    }
    Ok(())
}
