//! A small tmpfs in a separate mount namespace as the state directory of a daemon. A test can fill it, empty it and make
//! it read-only.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::{Daemon, run_checked};

/// A disk that only processes in its mount namespace see.
pub struct SmallDisk {
    /// Process that keeps the namespace.
    holder: Child,
    mount_point: PathBuf,
}

impl SmallDisk {
    /// Mounts a disk of this size at the state directory of a daemon.
    pub fn for_state(daemon: &Daemon, mib: u32) -> Self {
        let mount_point = daemon.state();
        fs::create_dir_all(&mount_point).unwrap();
        let script = format!(
            "mount -t tmpfs -o size={mib}m,mode=0700 tmpfs {} && echo ready && exec sleep 100000",
            mount_point.display()
        );
        let user_namespace: &[&str] = match rustix::process::geteuid().is_root() {
            true => &[],
            false => &["--user", "--map-root-user"],
        };
        let mut holder = Command::new("unshare")
            .args(user_namespace)
            .args(["--mount", "--kill-child", "--", "sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare(1) is missing; install util-linux");
        let mut ready = String::new();
        BufReader::new(holder.stdout.take().unwrap())
            .read_line(&mut ready)
            .unwrap();
        assert_eq!(ready, "ready\n", "cannot create a mount namespace");
        Self {
            holder,
            mount_point,
        }
    }

    /// Returns the command prefix that runs a program in the mount namespace.
    pub fn enter_command(&self) -> Vec<String> {
        let user_namespace: &[&str] = match rustix::process::geteuid().is_root() {
            true => &[],
            false => &["--user", "--preserve-credentials"],
        };
        let target = self.holder.id().to_string();
        ["nsenter", "--target", &target, "--mount"]
            .iter()
            .chain(user_namespace)
            .chain(&["--"])
            .map(|word| (*word).to_owned())
            .collect()
    }

    /// Returns the path of the disk for processes outside the namespace.
    pub fn path(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        root.join(self.mount_point.strip_prefix("/").unwrap())
    }

    /// Fills the disk with a file `ballast`.
    pub fn fill(&self) {
        let ballast = fs::File::create(self.path().join("ballast")).unwrap();
        let error = std::io::copy(&mut std::io::repeat(0), &mut &ballast).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    }

    /// Removes the file `ballast`.
    pub fn empty(&self) {
        fs::remove_file(self.path().join("ballast")).unwrap();
    }

    /// Mounts the disk read-only over itself. A remount is impossible while files are open for writing.
    pub fn make_read_only(&self) {
        let mount_point = self.mount_point.display();
        self.run_inside(&format!(
            "mount --bind {mount_point} {mount_point} && mount -o remount,bind,ro {mount_point}"
        ));
    }

    /// Removes the read-only mount.
    pub fn make_writable(&self) {
        self.run_inside(&format!("umount {}", self.mount_point.display()));
    }

    fn run_inside(&self, script: &str) {
        let prefix = self.enter_command();
        let mut command = Command::new(&prefix[0]);
        run_checked(command.args(&prefix[1..]).args(["sh", "-c", script]));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        crate::kill_shims(&self.path());
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
