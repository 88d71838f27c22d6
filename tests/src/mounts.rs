//! A daemon in a mount namespace of its own, whose state directory is a small disk that can be filled,
//! made read-only and emptied.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::{Daemon, text};

/// A small disk, seen only by what runs in its namespace.
pub struct SmallDisk {
    holder: Child,
    at: PathBuf,
}

impl SmallDisk {
    /// Makes a disk of so many MiB for the state of this daemon.
    pub fn for_state(daemon: &Daemon, mib: u32) -> Self {
        let at = daemon.state();
        fs::create_dir_all(&at).unwrap();
        let script = format!(
            "mount -t tmpfs -o size={mib}m,mode=0700 tmpfs {} && echo ready && exec sleep 100000",
            at.display()
        );
        let user: &[&str] = match rustix::process::geteuid().is_root() {
            true => &[],
            false => &["--user", "--map-root-user"],
        };
        let mut holder = Command::new("unshare")
            .args(user)
            .args(["--mount", "--kill-child", "--", "sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare(1) is needed: install util-linux");
        let mut ready = String::new();
        BufReader::new(holder.stdout.take().unwrap())
            .read_line(&mut ready)
            .unwrap();
        assert_eq!(ready, "ready\n", "a mount namespace cannot be made here");
        Self { holder, at }
    }

    /// The words before a program that is to see the disk.
    pub fn enter(&self) -> Vec<String> {
        let user: &[&str] = match rustix::process::geteuid().is_root() {
            true => &[],
            false => &["--user", "--preserve-credentials"],
        };
        let target = self.holder.id().to_string();
        ["nsenter", "--target", &target, "--mount"]
            .iter()
            .chain(user)
            .chain(&["--"])
            .map(|word| (*word).to_owned())
            .collect()
    }

    /// Where the disk is seen from outside.
    pub fn path(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        root.join(self.at.strip_prefix("/").unwrap())
    }

    /// Fills it up to the last byte with a file `ballast`.
    pub fn fill(&self) {
        let ballast = fs::File::create(self.path().join("ballast")).unwrap();
        let error = std::io::copy(&mut std::io::repeat(0), &mut &ballast).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    }

    /// Makes room.
    pub fn empty(&self) {
        fs::remove_file(self.path().join("ballast")).unwrap();
    }

    /// Lays a read-only view over it: every path leads there, as after a remount, which the kernel refuses
    /// while files are open to write.
    pub fn forbid_writing(&self) {
        let at = self.at.display();
        self.inside(&format!(
            "mount --bind {at} {at} && mount -o remount,bind,ro {at}"
        ));
    }

    /// Takes that view away.
    pub fn allow_writing(&self) {
        self.inside(&format!("umount {}", self.at.display()));
    }

    fn inside(&self, script: &str) {
        let enter = self.enter();
        let output = Command::new(&enter[0])
            .args(&enter[1..])
            .args(["sh", "-c", script])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        crate::kill_shims(&self.path());
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
