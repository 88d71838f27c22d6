//! The parts of a Linux sandbox that depend on the host: masks, the home directory, the user, held files.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use colibri_jail_core::{
    CommandLine, EphemeralJail, GIT_DIRECTORY, HostUser, JailPath, JailUser, Limits, Mount,
    PathError, Protection, Restriction, View, host_path,
};
use colibri_sys::known_daemons::KnownDaemons;
use colibri_sys::regular_file;
use colibri_types::HeldFile;

use crate::doctor::is_host_root;
use crate::mountinfo::{MountTable, join};
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
/// Maximum number of paths to which a repository refers.
const MAX_REFERENCES: usize = 64;
/// Maximum size of a configuration of git that is read, in bytes.
const MAX_CONFIG: u64 = 1 << 20;
/// List of all Unix sockets of the network namespace (proc(5)).
const UNIX_SOCKETS: &str = "/proc/net/unix";
/// Maximum number of masks of sockets that are found there.
const MAX_SOCKETS: usize = 256;
/// File that names the servers of name lookups.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What no agent may see, and the mounts by which it is visible, at one moment.
pub(crate) struct PrivateHostPaths {
    /// Real paths of private directories and files.
    private: Vec<PathBuf>,
    mounts: MountTable,
}

impl PrivateHostPaths {
    /// Returns every path of the host at which something private is visible.
    pub(crate) fn aliases(&self) -> Vec<PathBuf> {
        let private = self.private.iter();
        let aliases = private.flat_map(|path| self.mounts.aliases(path));
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
        let repositories = worktree::repositories_inside(jail);
        let mut read_only = referenced_paths(jail);
        read_only.extend(repositories.links);
        jail.sandbox.read_only = read_only;
        jail.sandbox.git_directories = repositories.directories;
        Ok(())
    }

    /// Returns the paths in the jail that show sockets and secrets of the host.
    ///
    /// # Errors
    /// A mount shows only such a path.
    fn hidden_paths(
        &self,
        jail: &EphemeralJail,
        table: &MountTable,
        home: Option<&Path>,
    ) -> Result<Vec<JailPath>, PathError> {
        let in_home = PRIVATE_IN_HOME
            .iter()
            .filter_map(|path| Some(home?.join(path)));
        let private = PRIVATE_ON_HOST.iter().map(PathBuf::from).chain(in_home);
        let aliases = |path: PathBuf| match path.canonicalize() {
            Ok(real) => table.aliases(&real),
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
                return Err(PathError::new("mount source", &mount.source, problem));
            }
        }
        let sockets = match jail.sandbox.applies(Restriction::UnixSockets) {
            true => bound_sockets(),
            false => Vec::new(),
        };
        let all = private
            .into_iter()
            .chain(sockets.into_iter().flat_map(aliases));
        Ok(all
            .flat_map(|path| self.paths_inside(jail, &path))
            .collect())
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
                && let Some(found) = parse(&join(Path::new(mount.target.as_str()), inner))
            {
                inside.push(found);
            }
        }
        inside
    }

    /// Reads the mounts of the host and finds what no agent may see.
    pub(crate) fn private_host_paths(&self) -> PrivateHostPaths {
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
        PrivateHostPaths {
            private: real.collect(),
            mounts: MountTable::parse(
                &fs::read_to_string("/proc/self/mountinfo").unwrap_or_default(),
            ),
        }
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

/// Returns the paths of sockets that processes of this network namespace have bound.
fn bound_sockets() -> Vec<PathBuf> {
    let listed = fs::read(UNIX_SOCKETS).unwrap_or_default();
    let listed = String::from_utf8_lossy(&listed);
    // The name follows seven fields. Other users choose names too: an abstract one begins with @, and a relative one with any text.
    let paths = listed.lines().filter_map(|line| {
        let mut rest = line;
        for _ in 0..7 {
            rest = rest.trim_start_matches(' ').split_once(' ')?.1;
        }
        let path = Path::new(rest);
        let is_socket = || {
            path.symlink_metadata()
                .is_ok_and(|data| data.file_type().is_socket())
        };
        (path.is_absolute() && is_socket()).then(|| path.to_owned())
    });
    let unique: BTreeSet<PathBuf> = paths.collect();
    unique.into_iter().take(MAX_SOCKETS).collect()
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
        let data = source.symlink_metadata();
        if data.is_ok_and(|data| data.file_type().is_socket())
            && jail.sandbox.applies(Restriction::UnixSockets)
        {
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
    let root = (jail.path != JailPath::root()).then_some(Path::new(jail.path.as_str()));
    let exposed: Vec<(PathBuf, &str)> = home
        .into_iter()
        .flat_map(|home| aliases(home, "the home directory"))
        .chain(
            host.private
                .iter()
                .flat_map(|path| aliases(path, "a private path of a daemon")),
        )
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
fn projects(jail: &EphemeralJail) -> impl Iterator<Item = &Mount> {
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

/// Returns the paths in workspaces to which the protected files of their repositories refer: targets of links in `.git/hooks`, and
/// the values of `core.hooksPath` and `include.path`.
fn referenced_paths(jail: &EphemeralJail) -> Vec<JailPath> {
    let mut found = BTreeSet::new();
    for mount in projects(jail) {
        let source = Path::new(mount.source.as_str());
        let git = source.join(GIT_DIRECTORY);
        let hooks = fs::read_dir(git.join("hooks"))
            .into_iter()
            .flatten()
            .flatten();
        let links = hooks
            .take(MAX_REFERENCES)
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()))
            .map(|entry| entry.path());
        let config = regular_file::read(&git.join("config"), MAX_CONFIG).unwrap_or_default();
        let named = named_by_config(&String::from_utf8_lossy(&config));
        // Hooks are relative to the working tree, and files to include to the configuration (git-config(1)).
        let named = named
            .into_iter()
            .take(MAX_REFERENCES)
            .map(|(is_hooks, path)| match is_hooks {
                true => source.join(path),
                false => git.join(path),
            });
        for path in links.chain(named) {
            let inner = existing_part(&path)
                .and_then(|path| Some(path.strip_prefix(source).ok()?.to_owned()));
            let is_work = |inner: &PathBuf| {
                !inner.as_os_str().is_empty() && !inner.starts_with(GIT_DIRECTORY)
            };
            let target = inner
                .filter(is_work)
                .map(|inner| Path::new(mount.target.as_str()).join(inner));
            found.extend(target.and_then(|path| path.to_str()?.parse::<JailPath>().ok()));
        }
    }
    found.into_iter().collect()
}

/// Returns the real path, or that of the first part of it that does not exist.
fn existing_part(path: &Path) -> Option<PathBuf> {
    let mut real = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::ParentDir => drop(real.pop()),
            Component::Normal(name) => {
                let next = real.join(name);
                match next.canonicalize() {
                    Ok(path) => real = path,
                    Err(_) if next.symlink_metadata().is_ok() => return None,
                    Err(_) => return Some(next),
                }
            }
            _ => {}
        }
    }
    Some(real)
}

/// Returns the paths that a configuration of git names as directory of hooks or as a file to include (git-config(1)).
///
/// The first value of each is whether it is the directory of hooks.
fn named_by_config(config: &str) -> Vec<(bool, String)> {
    let mut section = String::new();
    let mut named = Vec::new();
    for line in config.lines() {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[') {
            let end = header.find([' ', ']', '.']).unwrap_or(header.len());
            section = header.get(..end).unwrap_or_default().to_ascii_lowercase();
        }
        // A value may follow the header in the same line.
        let line = line.rsplit_once(']').map_or(line, |(_, rest)| rest.trim());
        let Some((name, value)) = line.split_once('=') else {
            continue;
        };
        let is_path = match section.as_str() {
            "core" => name.trim().eq_ignore_ascii_case("hookspath"),
            "include" | "includeif" => name.trim().eq_ignore_ascii_case("path"),
            _ => false,
        };
        if is_path {
            named.push((section == "core", value.trim().trim_matches('"').to_owned()));
        }
    }
    named
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_hooks_and_includes_are_found() {
        let config = "[core]\n\tbare = false\n\thooksPath = \"tools/hooks\"\n[include] path = ../shared.cfg\n\
            [includeIf \"gitdir:/x/\"]\n\tpath = other.cfg\n[remote \"a\"]\n\tpath = no\n";
        let named = |is_hooks, path: &str| (is_hooks, path.to_owned());
        assert_eq!(
            named_by_config(config),
            [
                named(true, "tools/hooks"),
                named(false, "../shared.cfg"),
                named(false, "other.cfg")
            ]
        );
        assert_eq!(named_by_config("path = x\n[core\nhookspath"), []);
    }

    #[test]
    fn real_path_ends_at_the_first_part_that_does_not_exist() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir(root.join("d")).unwrap();
        std::os::unix::fs::symlink("d", root.join("link")).unwrap();
        std::os::unix::fs::symlink("absent", root.join("dangling")).unwrap();
        for (path, expected) in [
            ("d", Some("d")),
            ("link", Some("d")),
            ("link/x/y", Some("d/x")),
            ("d/../a/b/c", Some("a")),
            ("dangling", None),
        ] {
            let expected = expected.map(|path| root.join(path));
            assert_eq!(existing_part(&root.join(path)), expected, "{path}");
        }
    }
}
