//! Containers of crun(1) and runc(8). They are similar to the sandbox that bwrap(1) creates for Colibri: the same
//! namespaces, private /proc, /dev and /tmp, all other directories of the host read-only, and no cgroup if the runtime
//! allows that.

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
use super::super::{Peer, SpawnPeer};
use super::{create_directory, path_text, run_checked};

/// A container runtime.
#[derive(Debug, Clone, Copy)]
pub(super) enum Runtime {
    Crun,
    /// Creates a cgroup for each container; no option prevents it.
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
            // Paths in Docker's and Debian's packages.
            Self::Runc if Path::new("/usr/bin/runc").exists() => "/usr/bin/runc",
            Self::Runc => "/usr/sbin/runc",
        }
    }
}

/// An OCI bundle: a directory with `config.json` and the mount points for the host's directories.
pub(super) struct Bundle {
    pub(super) directory: TempDir,
    pub(super) runtime: Runtime,
    count: usize,
}

impl Bundle {
    pub(super) fn new(runtime: Runtime) -> Result<Self> {
        let directory = create_directory()?;
        let root = directory.path().join("root");
        for mount_point in ["proc", "dev", "tmp", "sys"] {
            fs::create_dir_all(root.join(mount_point))?;
        }
        for (path, kind) in host_entries()? {
            let target = root.join(path.strip_prefix("/")?);
            if kind.is_symlink() {
                symlink(fs::read_link(&path)?, target)?;
            } else {
                fs::create_dir(target)?;
            }
        }
        Ok(Self {
            directory,
            runtime,
            count: 0,
        })
    }

    /// Writes `config.json` for a command, and chooses the name of the next container.
    pub(super) fn prepare(&mut self, command: &[&str]) -> Result<String> {
        self.count += 1;
        let config = serde_json::to_vec(&config(command)?)?;
        fs::write(self.directory.path().join("config.json"), config)?;
        let prefix = self.directory.path().file_name().context("no name")?;
        Ok(format!("{}-{}", prefix.to_string_lossy(), self.count))
    }

    /// Returns the global options of the runtime.
    pub(super) fn options(&self) -> Vec<String> {
        let state = self.directory.path().join("state").display().to_string();
        let mut options = vec![format!("--root={state}")];
        if matches!(self.runtime, Runtime::Crun) {
            options.push("--cgroup-manager=disabled".to_owned());
        }
        options
    }

    pub(super) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.runtime.program());
        command
            .args(self.options())
            .args(words)
            .current_dir(self.directory.path());
        command
    }

    /// Kills a container; its runtime then deletes it. Retries, because a container can run before its runtime has
    /// recorded that.
    fn kill(&self, name: &str, run: &mut Child) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match run_checked(&mut self.command(&["kill", name, "KILL"])) {
                Ok(()) => return Ok(()),
                Err(_) if run.try_wait()?.is_some() => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    let _ = self.delete(name);
                    return Err(error);
                }
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    pub(super) fn delete(&self, name: &str) -> Result<()> {
        run_checked(&mut self.command(&["delete", "--force", name]))
    }
}

/// Returns the entries of the host's root, except those that a container replaces.
fn host_entries() -> Result<Vec<(std::path::PathBuf, fs::FileType)>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir("/")? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        let replaced = ["/proc", "/dev", "/tmp", "/sys"]
            .iter()
            .any(|mount_point| path == Path::new(mount_point));
        if !replaced && (kind.is_dir() || kind.is_symlink()) {
            entries.push((path, kind));
        }
    }
    Ok(entries)
}

/// Returns the content of `config.json` for a command.
fn config(command: &[&str]) -> Result<Value> {
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc"}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]}),
        json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev"]}),
    ];
    for (path, kind) in host_entries()? {
        if kind.is_dir() {
            let path = path_text(&path)?;
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

/// `crun run` or `runc run` in the foreground with a pipe as output; the runtimes have no other interface.
pub(super) struct Container(Bundle);

impl Container {
    pub(super) fn new(runtime: Runtime) -> Result<Self> {
        Ok(Self(Bundle::new(runtime)?))
    }
}

impl Peer for Container {
    fn name(&self) -> String {
        self.0.runtime.name().to_owned()
    }
}

impl SpawnPeer for Container {
    fn first_byte(&mut self, command: &[&str]) -> Result<Duration> {
        let name = self.0.prepare(command)?;
        let mut run = self.0.command(&["run", &name]);
        first_byte_of(&mut run, |run| self.0.kill(&name, run))
    }
}
