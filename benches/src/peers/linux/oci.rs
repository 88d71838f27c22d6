//! Containers of crun(1) and runc(8), as close as they can be to the sandbox that bwrap(1) makes for Colibri: the same
//! namespaces, /proc, /dev and /tmp of its own, everything else of the host readable; no cgroup where the runtime
//! can do without.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{getegid, geteuid};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::super::plain::first_byte_of;
use super::super::{Named, Spawns};
use super::{directory, quietly, text};

/// What runs containers.
#[derive(Debug, Clone, Copy)]
pub(super) enum Runtime {
    Crun,
    /// Makes a cgroup for each container: it has no option against it.
    Runc,
}

impl Runtime {
    pub(super) const ALL: &[Self] = &[Self::Crun, Self::Runc];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Crun => "crun and a pipe",
            Self::Runc => "runc and a pipe",
        }
    }

    pub(super) fn name_with_conmon(self) -> &'static str {
        match self {
            Self::Crun => "conmon and crun",
            Self::Runc => "conmon and runc",
        }
    }

    pub(super) fn program(self) -> &'static str {
        match self {
            Self::Crun => "/usr/bin/crun",
            // Where the packages of Docker have it, and where Debian has it.
            Self::Runc if Path::new("/usr/bin/runc").exists() => "/usr/bin/runc",
            Self::Runc => "/usr/sbin/runc",
        }
    }
}

/// An OCI bundle: a directory with `config.json` and the directories that the host's are mounted on.
pub(super) struct Bundle {
    pub(super) directory: TempDir,
    pub(super) runtime: Runtime,
    count: usize,
}

impl Bundle {
    pub(super) fn new(runtime: Runtime) -> Result<Self> {
        let directory = directory()?;
        let root = directory.path().join("root");
        for own in ["proc", "dev", "tmp", "sys"] {
            fs::create_dir_all(root.join(own))?;
        }
        for (path, kind) in host()? {
            let own = root.join(path.strip_prefix("/")?);
            if kind.is_symlink() {
                symlink(fs::read_link(&path)?, own)?;
            } else {
                fs::create_dir(own)?;
            }
        }
        Ok(Self {
            directory,
            runtime,
            count: 0,
        })
    }

    /// Writes `config.json` for a command, and makes a name for the next container.
    pub(super) fn prepare(&mut self, command: &[&str]) -> Result<String> {
        self.count += 1;
        let config = serde_json::to_vec(&config(command)?)?;
        fs::write(self.directory.path().join("config.json"), config)?;
        let own = self.directory.path().file_name().context("no name")?;
        Ok(format!("{}-{}", own.to_string_lossy(), self.count))
    }

    /// What the runtime is told before the name of a command.
    pub(super) fn arguments(&self) -> Vec<String> {
        let state = self.directory.path().join("state").display().to_string();
        let mut arguments = vec![format!("--root={state}")];
        if matches!(self.runtime, Runtime::Crun) {
            arguments.push("--cgroup-manager=disabled".to_owned());
        }
        arguments
    }

    pub(super) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.runtime.program());
        command
            .args(self.arguments())
            .args(words)
            .current_dir(self.directory.path());
        command
    }

    /// Kills a container, which its runtime deletes when that has ended. It may run before its runtime has written
    /// down that it does.
    fn kill(&self, name: &str, run: &mut Child) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            match quietly(&mut self.command(&["kill", name, "KILL"])) {
                Ok(()) => return Ok(()),
                Err(_) if run.try_wait()?.is_some() => return Ok(()),
                Err(error) if Instant::now() > until => {
                    let _ = self.delete(name);
                    return Err(error);
                }
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    pub(super) fn delete(&self, name: &str) -> Result<()> {
        quietly(&mut self.command(&["delete", "--force", name]))
    }
}

/// What is in the host's root, but for what a container has of its own.
fn host() -> Result<Vec<(std::path::PathBuf, fs::FileType)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/")? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        let own = ["/proc", "/dev", "/tmp", "/sys"]
            .iter()
            .any(|own| path == Path::new(own));
        if !own && (kind.is_dir() || kind.is_symlink()) {
            found.push((path, kind));
        }
    }
    Ok(found)
}

fn config(command: &[&str]) -> Result<Value> {
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc"}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]}),
        json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev"]}),
    ];
    for (path, kind) in host()? {
        if kind.is_dir() {
            let path = text(&path)?;
            mounts.push(json!({"destination": path, "type": "bind", "source": path, "options": ["rbind", "ro"]}));
        }
    }
    let namespaces =
        ["user", "pid", "ipc", "uts", "mount", "cgroup"].map(|kind| json!({"type": kind}));
    let mapping = |host: u32| json!([{"containerID": 0, "hostID": host, "size": 1}]);
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": command,
            "env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
            "cwd": "/",
            "noNewPrivileges": true,
        },
        "root": {"path": "root", "readonly": true},
        "mounts": mounts,
        "linux": {
            "namespaces": namespaces,
            "uidMappings": mapping(geteuid().as_raw()),
            "gidMappings": mapping(getegid().as_raw()),
        },
    }))
}

/// `crun run` or `runc run` in the foreground, its output a pipe: there is no other interface to them.
pub(super) struct Container(Bundle);

impl Container {
    pub(super) fn new(runtime: Runtime) -> Result<Self> {
        Ok(Self(Bundle::new(runtime)?))
    }
}

impl Named for Container {
    fn name(&self) -> String {
        self.0.runtime.name().to_owned()
    }
}

impl Spawns for Container {
    fn first_byte(&mut self, command: &[&str]) -> Result<Duration> {
        let name = self.0.prepare(command)?;
        let mut run = self.0.command(&["run", &name]);
        first_byte_of(&mut run, |run| self.0.kill(&name, run))
    }
}
