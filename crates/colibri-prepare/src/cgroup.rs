//! Control groups of version 2 (cgroups(7)): limits on all processes of an agent together, on Linux.
//!
//! The daemon needs a delegated subtree, as systemd provides with `Delegate=yes`. A cgroup that contains processes cannot
//! enable controllers for its children, so the daemon must be in a leaf of the subtree, as systemd arranges with
//! `DelegateSubgroup=daemon`. The daemon does not move itself: systemd could then not start the next daemon while agents
//! still run.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use colibri_jail_core::Limits;

/// The controllers that [`Limits`] need.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];
/// Name of the leaf that contains the daemon.
const DAEMON_LEAF: &str = "daemon";
/// Parent of the agents' cgroups, if the daemon is in the root of the tree.
const AGENTS_PARENT: &str = "colibri";
/// File of the limit on swap.
const SWAP_MAX: &str = "memory.swap.max";
/// Period of a CPU quota, in microseconds; the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;

/// Why a mechanism cannot be used on this host. Displays as `CAUSE; HINT`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{cause}; {hint}")]
pub struct Obstacle {
    /// The cause.
    pub cause: String,
    /// How to remove it.
    pub hint: String,
}

impl Obstacle {
    fn new(cause: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            cause: cause.into(),
            hint: hint.into(),
        }
    }
}

impl From<&str> for Obstacle {
    /// Returns an obstacle with this cause, for callers that do not use limits. The hint is to run without the limit.
    fn from(cause: &str) -> Self {
        Self::new(cause, "run without the limit, with best_effort")
    }
}

/// The parent directory of the agents' cgroups, if there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cgroups {
    /// Agents have no cgroups.
    Unavailable(Obstacle),
    /// Agents have cgroups in a directory.
    In {
        /// A directory of the cgroup2 file system.
        parent: PathBuf,
        /// The controllers that are enabled there.
        controllers: Vec<String>,
    },
}

/// The subtree that is delegated to this process.
struct Delegated {
    /// Parent of the agents' cgroups.
    agents: PathBuf,
    /// The cgroup whose controllers `agents` can use. Equals `agents`, except in the root of the tree.
    source: PathBuf,
}

impl Cgroups {
    /// Finds the cgroup for agents, `named` or else the one delegated to this process, and enables its controllers.
    #[must_use]
    pub fn claim(named: Option<&Path>) -> Self {
        Self::find(named, Access::Claim)
    }

    /// Returns the result that [`Cgroups::claim`] would have, without changing anything.
    #[must_use]
    pub fn probe(named: Option<&Path>) -> Self {
        Self::find(named, Access::Probe)
    }

    fn find(named: Option<&Path>, access: Access) -> Self {
        let delegated = match named {
            Some(named) => Ok(Delegated {
                agents: named.to_owned(),
                source: named.to_owned(),
            }),
            None => find_delegated(access),
        };
        let claimed = delegated.and_then(|Delegated { agents, source }| {
            // A probe does not create the cgroup; it reads the controllers of the parent instead.
            let cgroup = match access {
                Access::Probe if !agents.exists() => &source,
                _ => &agents,
            };
            let controllers = enable_controllers(cgroup, access).map_err(|error| {
                Obstacle::new(
                    format!("cgroup {} cannot be used: {error}", agents.display()),
                    "name another one in the setting cgroup",
                )
            })?;
            Ok(Self::In {
                parent: agents,
                controllers,
            })
        });
        claimed.unwrap_or_else(Self::Unavailable)
    }

    /// Returns why a controller cannot be used; `None` if it can.
    #[must_use]
    pub(crate) fn obstacle(&self, controller: &str) -> Option<Obstacle> {
        match self {
            Self::Unavailable(obstacle) => Some(obstacle.clone()),
            Self::In { controllers, .. }
                if controllers.iter().any(|enabled| enabled == controller) =>
            {
                None
            }
            Self::In { parent, .. } => Some(Obstacle::new(
                format!(
                    "the cgroup controller {controller} is not available in {}",
                    parent.display()
                ),
                CONTROLLER_HINT,
            )),
        }
    }

    /// Creates the cgroup of an agent, and sets the limits whose controller is enabled.
    ///
    /// # Errors
    /// The cgroup cannot be created, or a limit cannot be set. No cgroup is left then.
    pub fn create(&self, id: &str, limits: &Limits) -> io::Result<PathBuf> {
        let Self::In { parent, .. } = self else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let directory = parent.join(id);
        fs::create_dir(&directory)?;
        let set = settings(limits).into_iter().try_for_each(|(file, value)| {
            let controller = file.split('.').next().unwrap_or(file);
            if self.obstacle(controller).is_some() {
                return Ok(());
            }
            match fs::write(directory.join(file), value) {
                // Missing on a host without swap.
                Err(error) if file == SWAP_MAX && error.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other,
            }
        });
        match set {
            Ok(()) => Ok(directory),
            Err(error) => {
                let _ = fs::remove_dir(&directory);
                Err(error)
            }
        }
    }

    /// Kills all processes in the cgroup of an agent and removes the cgroup, if it exists.
    pub async fn end(&self, id: &str) {
        let Self::In { parent, .. } = self else {
            return;
        };
        let directory = parent.join(id);
        if fs::write(directory.join("cgroup.kill"), "1").is_err() {
            return;
        }
        // A killed process leaves the cgroup only when its parent has waited for it.
        for _ in 0..100 {
            if fs::remove_dir(&directory).is_ok() || !directory.exists() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tracing::warn!(cgroup = %directory.display(), "cannot remove the cgroup of an agent");
    }
}

/// Returns the files of a cgroup, and the values that enforce `limits`. A file is named after its controller.
fn settings(limits: &Limits) -> Vec<(&'static str, String)> {
    let mut settings = Vec::new();
    if let Some(memory) = limits.memory {
        settings.push(("memory.max", memory.0.to_string()));
        settings.push((SWAP_MAX, "0".to_owned()));
        // Kills all processes: an agent could wait forever for a single killed one.
        settings.push(("memory.oom.group", "1".to_owned()));
    }
    if let Some(processes) = limits.processes {
        settings.push(("pids.max", processes.to_string()));
    }
    if let Some(cpu) = limits.cpu {
        let quota = u64::from(cpu.0) * CPU_PERIOD_US / 1000;
        settings.push(("cpu.max", format!("{quota} {CPU_PERIOD_US}")));
    }
    settings
}

/// Whether a function may change the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Only reads which controllers could be enabled.
    Probe,
    /// Enables controllers.
    Claim,
}

/// Enables the required controllers for child cgroups and returns the enabled ones. [`Access::Probe`] enables none and
/// returns the controllers that this process could enable.
fn enable_controllers(parent: &Path, access: Access) -> io::Result<Vec<String>> {
    let words = |file: &str| -> io::Result<Vec<String>> {
        let text = fs::read_to_string(parent.join(file))?;
        Ok(text.split_whitespace().map(str::to_owned).collect())
    };
    let available = words("cgroup.controllers")?;
    let enabled = words("cgroup.subtree_control")?;
    if access == Access::Probe {
        let control = parent.join("cgroup.subtree_control");
        let writable = fs::OpenOptions::new().write(true).open(control).is_ok();
        return Ok(if writable { available } else { enabled });
    }
    for controller in CONTROLLERS {
        let has = |list: &[String]| list.iter().any(|word| word == controller);
        if has(&available) && !has(&enabled) {
            fs::write(
                parent.join("cgroup.subtree_control"),
                format!("+{controller}"),
            )?;
        }
    }
    words("cgroup.subtree_control")
}

/// Finds the subtree that is delegated to this process.
fn find_delegated(access: Access) -> Result<Delegated, Obstacle> {
    let read = |file: &str| {
        fs::read_to_string(file).map_err(|error| {
            Obstacle::new(format!("{file} cannot be read: {error}"), "mount /proc")
        })
    };
    let mount = mount_point(&read("/proc/self/mountinfo")?).ok_or_else(|| Obstacle::new(
        "no whole cgroup2 file system is mounted",
        "boot with cgroups of version 2 (cgroups(7)), and in a container share the host's cgroup namespace",
    ))?;
    let cgroups = read("/proc/self/cgroup")?;
    let own = own_cgroup(&cgroups).ok_or_else(|| {
        Obstacle::new(
            "the daemon is in no cgroup of version 2",
            "boot with cgroups of version 2 (cgroups(7))",
        )
    })?;
    let is_root = own == "/";
    let cgroup = mount.join(own.trim_start_matches('/'));
    let is_leaf = cgroup.file_name().is_some_and(|name| name == DAEMON_LEAF);
    let source = match cgroup.parent() {
        _ if is_root => mount,
        Some(parent) if is_leaf => parent.to_owned(),
        _ => return Err(not_delegated(&cgroup, &"it contains the daemon itself")),
    };
    let refused = |error: io::Error| not_delegated(&source, &error);
    let controllers = enable_controllers(&source, access).map_err(refused)?;
    let mut agents = source.clone();
    if is_root {
        if controllers.is_empty() {
            return Err(Obstacle::new(
                format!(
                    "the cgroup controllers memory, pids and cpu are not available in {}",
                    source.display()
                ),
                CONTROLLER_HINT,
            ));
        }
        agents.push(AGENTS_PARENT);
        if access == Access::Claim {
            fs::create_dir_all(&agents).map_err(refused)?;
        }
    }
    Ok(Delegated { agents, source })
}

fn not_delegated(cgroup: &Path, cause: &dyn fmt::Display) -> Obstacle {
    Obstacle::new(
        format!(
            "cgroup {} is not delegated to the daemon ({cause})",
            cgroup.display()
        ),
        "run the daemon as a systemd service with Delegate=yes and DelegateSubgroup=daemon (systemd 254 or later; systemctl --user start colibri does that), or name a delegated cgroup in the setting cgroup",
    )
}

/// Hint on how to make the controllers available.
const CONTROLLER_HINT: &str = "boot with cgroups of version 2 only (systemd.unified_cgroup_hierarchy=1 on the kernel's command line), run the daemon as a systemd service with Delegate=yes, or name a cgroup that has the controller in the setting cgroup";

/// Returns the mount point of the whole cgroup2 tree (proc_pid_mountinfo(5)).
fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, mount_point) = (fields.next()?, fields.next()?);
        let is_whole_tree = after.starts_with("cgroup2 ") && root == "/";
        is_whole_tree.then(|| PathBuf::from(mount_point))
    })
}

/// Returns the path of a process in the cgroup2 tree (proc_pid_cgroup(5)).
fn own_cgroup(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_point_and_own_cgroup_are_parsed() {
        let mountinfo = "22 1 0:20 / /sys rw - sysfs sysfs rw\n\
            31 22 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(
            mount_point(mountinfo),
            Some(PathBuf::from("/sys/fs/cgroup"))
        );
        let bound = "31 22 0:26 /user.slice /mnt rw - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(bound), None, "only a part of the tree");
        assert_eq!(mount_point(""), None);
        let own = "9:pids:/x\n0::/user.slice/colibri.service\n";
        assert_eq!(own_cgroup(own), Some("/user.slice/colibri.service"));
        assert_eq!(own_cgroup("9:pids:/x\n"), None);
    }

    #[test]
    fn limits_become_cgroup_settings() {
        let limits: Limits =
            serde_json::from_str(r#"{"memory":"2G","processes":64,"cpu":1.5,"open_files":9}"#)
                .unwrap();
        let set: Vec<_> = settings(&limits)
            .into_iter()
            .map(|(file, value)| format!("{file}={value}"))
            .collect();
        assert_eq!(
            set,
            [
                "memory.max=2147483648",
                "memory.swap.max=0",
                "memory.oom.group=1",
                "pids.max=64",
                "cpu.max=150000 100000"
            ]
        );
        assert!(settings(&Limits::default()).is_empty());
    }

    #[test]
    fn plain_directory_is_refused_as_cgroup() {
        let dir = tempfile::tempdir().unwrap();
        for find in [Cgroups::claim, Cgroups::probe] {
            let Cgroups::Unavailable(obstacle) = find(Some(dir.path())) else {
                panic!("a plain directory is not a cgroup");
            };
            assert!(
                obstacle.cause.contains(dir.path().to_str().unwrap()),
                "{obstacle}"
            );
        }
    }

    #[test]
    fn probe_reads_controllers_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        fs::write(dir.path().join("cgroup.subtree_control"), "").unwrap();
        let found = Cgroups::probe(Some(dir.path()));
        assert_eq!(found.obstacle("memory"), None, "{found:?}");
        let obstacle = found.obstacle("io").unwrap();
        assert!(obstacle.hint.starts_with("boot with"), "{obstacle}");
        let control = fs::read_to_string(dir.path().join("cgroup.subtree_control")).unwrap();
        assert_eq!(control, "");
    }
}
