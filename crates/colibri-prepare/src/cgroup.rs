//! Control groups of version 2 (cgroups(7)): what holds all processes of an agent to limits together on Linux.
//!
//! The daemon needs a part of the tree that is its own, as systemd gives with `Delegate=yes`. A cgroup that has
//! processes cannot hand controllers on, so the daemon must be in a leaf of that part, which systemd does with
//! `DelegateSubgroup=daemon`. To move there by itself would keep systemd from starting the next daemon beside
//! agents that still run.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use colibri_jail_core::Limits;

/// The controllers of [`Limits`]: memory, processes and processors.
const WANTED: [&str; 3] = ["memory", "pids", "cpu"];
/// Where the daemon itself is.
const LEAF: &str = "daemon";
/// Where agents' cgroups go if the daemon is in the root of the tree.
const OWN: &str = "colibri";
/// The period of a processor quota, in microseconds; the kernel's default.
const PERIOD: u64 = 100_000;

/// Where the cgroups of agents are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cgroups {
    /// Nowhere, and why.
    Unavailable(String),
    /// In this directory, with these controllers.
    In {
        /// A directory of the cgroup2 file system.
        parent: PathBuf,
        /// What agents can be held to there.
        controllers: Vec<String>,
    },
}

impl Cgroups {
    /// Finds the cgroup for agents, `named` or else the one delegated to this process, and enables its controllers.
    #[must_use]
    pub fn claim(named: Option<&Path>) -> Self {
        Self::find(named, Access::Change)
    }

    /// Returns the result that [`Cgroups::claim`] would have, without changing anything.
    #[must_use]
    pub fn probe(named: Option<&Path>) -> Self {
        Self::find(named, Access::Look)
    }

    fn find(named: Option<&Path>, access: Access) -> Self {
        let parent = match named {
            Some(named) => Ok((named.to_owned(), named.to_owned())),
            None => own_place(access),
        };
        let claimed = parent.and_then(|(parent, source)| {
            // A probe does not create the cgroup, so that its controllers are read from the parent.
            let place = match access {
                Access::Look if !parent.exists() => &source,
                _ => &parent,
            };
            let controllers = hand_on(place, access).map_err(|error| {
                format!(
                    "cgroup {} cannot be used: {error}; name another one in the setting cgroup",
                    parent.display()
                )
            })?;
            Ok(Self::In {
                parent,
                controllers,
            })
        });
        claimed.unwrap_or_else(Self::Unavailable)
    }

    /// Why a controller cannot be used; nothing if it can.
    #[must_use]
    pub(crate) fn lacks(&self, controller: &str) -> Option<String> {
        match self {
            Self::Unavailable(why) => Some(why.clone()),
            Self::In { controllers, .. } if controllers.iter().any(|own| own == controller) => None,
            Self::In { parent, .. } => Some(format!(
                "the cgroup controller {controller} is not available in {}; {HOW_TO_GET}",
                parent.display()
            )),
        }
    }

    /// Makes the cgroup of an agent, with those of its limits that can be set.
    pub fn make(&self, id: &str, limits: &Limits) -> io::Result<PathBuf> {
        let Self::In { parent, .. } = self else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let directory = parent.join(id);
        fs::create_dir(&directory)?;
        let set = settings(limits)
            .into_iter()
            .filter(|(controller, ..)| self.lacks(controller).is_none())
            .try_for_each(|(_, file, value, needed)| {
                match fs::write(directory.join(file), value) {
                    // There is no swap to be limited on every host.
                    Err(error) if !needed && error.kind() == io::ErrorKind::NotFound => Ok(()),
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

    /// Ends what is in an agent's cgroup and removes it, if it has one.
    pub async fn end(&self, id: &str) {
        let Self::In { parent, .. } = self else {
            return;
        };
        let directory = parent.join(id);
        if fs::write(directory.join("cgroup.kill"), "1").is_err() {
            return;
        }
        // The dead leave it when they are collected.
        for _ in 0..100 {
            if fs::remove_dir(&directory).is_ok() || !directory.exists() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tracing::warn!(cgroup = %directory.display(), "the cgroup of an agent was not removed");
    }
}

/// Controller, file, value, and whether the file must be there.
fn settings(limits: &Limits) -> Vec<(&'static str, &'static str, String, bool)> {
    let mut settings = Vec::new();
    if let Some(memory) = limits.memory {
        settings.push(("memory", "memory.max", memory.0.to_string(), true));
        settings.push(("memory", "memory.swap.max", "0".to_owned(), false));
        // One process less would leave an agent that waits for it for ever.
        settings.push(("memory", "memory.oom.group", "1".to_owned(), true));
    }
    if let Some(processes) = limits.processes {
        settings.push(("pids", "pids.max", processes.to_string(), true));
    }
    if let Some(cpu) = limits.cpu {
        let quota = u64::from(cpu.0) * PERIOD / 1000;
        settings.push(("cpu", "cpu.max", format!("{quota} {PERIOD}"), true));
    }
    settings
}

/// Selects whether controllers are enabled or only read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Look,
    Change,
}

/// Enables the required controllers for child cgroups and returns the enabled ones; with [`Access::Look`] only returns
/// the controllers that this process could enable.
fn hand_on(parent: &Path, access: Access) -> io::Result<Vec<String>> {
    let words = |file: &str| -> io::Result<Vec<String>> {
        let text = fs::read_to_string(parent.join(file))?;
        Ok(text.split_whitespace().map(str::to_owned).collect())
    };
    let there = words("cgroup.controllers")?;
    let on = words("cgroup.subtree_control")?;
    if access == Access::Look {
        let control = parent.join("cgroup.subtree_control");
        let writable = fs::OpenOptions::new().write(true).open(control).is_ok();
        return Ok(if writable { there } else { on });
    }
    for controller in WANTED {
        let has = |list: &[String]| list.iter().any(|word| word == controller);
        if has(&there) && !has(&on) {
            fs::write(
                parent.join("cgroup.subtree_control"),
                format!("+{controller}"),
            )?;
        }
    }
    words("cgroup.subtree_control")
}

/// Finds the subtree that is delegated to this process: returns the cgroup for agents, and its parent, which hands
/// controllers to it.
fn own_place(access: Access) -> Result<(PathBuf, PathBuf), String> {
    let reading = |file: &str| {
        fs::read_to_string(file)
            .map_err(|error| format!("{file} cannot be read: {error}; mount /proc"))
    };
    let mount = mount_point(&reading("/proc/self/mountinfo")?).ok_or(
        "no whole cgroup2 file system is mounted; boot with cgroups of version 2 (cgroups(7)), and in a container share the host's cgroup namespace",
    )?;
    let cgroups = reading("/proc/self/cgroup")?;
    let own = own_cgroup(&cgroups).ok_or(
        "the daemon is in no cgroup of version 2; boot with cgroups of version 2 (cgroups(7))",
    )?;
    if own == "/" {
        let place = mount.join(OWN);
        let controllers = hand_on(&mount, access).map_err(|error| not_delegated(&mount, &error))?;
        if controllers.is_empty() {
            return Err(format!(
                "the cgroup controllers memory, pids and cpu are not available in {}; {HOW_TO_GET}",
                mount.display()
            ));
        }
        if access == Access::Change {
            fs::create_dir_all(&place).map_err(|error| not_delegated(&mount, &error))?;
        }
        return Ok((place, mount));
    }
    let place = mount.join(own.trim_start_matches('/'));
    let parent = place
        .parent()
        .filter(|_| place.file_name().is_some_and(|name| name == LEAF));
    match parent.map(|parent| (parent, hand_on(parent, access))) {
        Some((parent, Ok(_))) => Ok((parent.to_owned(), parent.to_owned())),
        Some((parent, Err(error))) => Err(not_delegated(parent, &error)),
        None => Err(not_delegated(&place, &"it contains the daemon itself")),
    }
}

fn not_delegated(place: &Path, why: &dyn std::fmt::Display) -> String {
    format!(
        "cgroup {} is not delegated to the daemon ({why}); run the daemon as a systemd service with Delegate=yes and DelegateSubgroup=daemon (systemd 254 or later; systemctl --user start colibri does that), or name a delegated cgroup in the setting cgroup",
        place.display()
    )
}

/// Hint on how to make the controllers available.
const HOW_TO_GET: &str = "boot with cgroups of version 2 only (systemd.unified_cgroup_hierarchy=1 on the kernel's command line), run the daemon as a systemd service with Delegate=yes, or name a cgroup that has the controller in the setting cgroup";

/// The mount point of the whole cgroup2 tree, from proc_pid_mountinfo(5).
fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (before, behind) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, place) = (fields.next()?, fields.next()?);
        let is_it = behind.starts_with("cgroup2 ") && root == "/";
        is_it.then(|| PathBuf::from(place))
    })
}

/// Where a process is in the cgroup2 tree, from proc_pid_cgroup(5).
fn own_cgroup(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_read() {
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
    fn limits_become_files() {
        let limits: Limits =
            serde_json::from_str(r#"{"memory":"2G","processes":64,"cpu":1.5,"open_files":9}"#)
                .unwrap();
        let set: Vec<_> = settings(&limits)
            .into_iter()
            .map(|(_, file, value, _)| format!("{file}={value}"))
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
    fn a_place_that_is_none_says_so() {
        let dir = tempfile::tempdir().unwrap();
        for find in [Cgroups::claim, Cgroups::probe] {
            let Cgroups::Unavailable(why) = find(Some(dir.path())) else {
                panic!("a plain directory is no cgroup");
            };
            assert!(why.contains(dir.path().to_str().unwrap()), "{why}");
        }
    }

    #[test]
    fn probe_reads_controllers_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        fs::write(dir.path().join("cgroup.subtree_control"), "").unwrap();
        let found = Cgroups::probe(Some(dir.path()));
        assert_eq!(found.lacks("memory"), None, "{found:?}");
        let lacking = found.lacks("io").unwrap();
        assert!(lacking.contains("; boot with"), "{lacking}");
        let control = fs::read_to_string(dir.path().join("cgroup.subtree_control")).unwrap();
        assert_eq!(control, "");
    }
}
