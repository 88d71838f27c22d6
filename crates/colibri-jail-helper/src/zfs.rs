//! Clones of template datasets, by zfs(8).

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use colibri_jail_core::{JailName, JailPath};

/// The program.
const ZFS: &str = "/sbin/zfs";
/// Name of the snapshot of a complete template, which `colibri jail init --zfs` takes.
const SNAPSHOT: &str = "colibri";
/// Maximum time of one command.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Time between two checks whether a command has ended.
const CHECK_INTERVAL: Duration = Duration::from_millis(5);
/// Maximum number of bytes of a command's output that are used.
const MAX_OUTPUT: u64 = 4096;

/// The dataset of a jail, a clone beside the template's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ZfsClone {
    snapshot: String,
    dataset: String,
}

impl ZfsClone {
    /// Returns the clone of `template`, a dataset, for a jail.
    pub(crate) fn new(template: &str, jail: &JailName) -> Self {
        let parent = template.rsplit_once('/');
        let parent = parent.map_or(template, |(parent, _)| parent);
        Self {
            snapshot: format!("{template}@{SNAPSHOT}"),
            dataset: format!("{parent}/{jail}"),
        }
    }

    /// Returns the arguments that print the snapshot, if it exists.
    fn find_snapshot(&self) -> Vec<&str> {
        list("name", "snapshot", &self.snapshot)
    }

    /// Returns the arguments that print the snapshot of which the dataset is a clone, if the dataset exists.
    fn find_origin(&self) -> Vec<&str> {
        list("origin", "filesystem", &self.dataset)
    }

    /// Returns the arguments that create the clone and mount it. The parent of the template may be read-only.
    fn create<'a>(&'a self, mount: &'a str) -> Vec<&'a str> {
        let (from, to) = (&self.snapshot, &self.dataset);
        vec!["clone", "-o", mount, "-o", "readonly=off", from, to]
    }

    /// Returns the arguments that unmount the clone, also while files of it are open, and destroy it.
    fn destroy(&self) -> Vec<&str> {
        vec!["destroy", "-f", &self.dataset]
    }

    /// Returns whether the template has the snapshot.
    pub(crate) fn has_snapshot(&self) -> Result<bool, String> {
        if_exists(run(ZFS, &self.find_snapshot(), TIMEOUT)).map(|snapshot| snapshot.is_some())
    }

    /// Creates the clone and mounts it on a directory.
    pub(crate) fn create_at(&self, directory: &JailPath) -> Result<(), String> {
        let mount = format!("mountpoint={directory}");
        run(ZFS, &self.create(&mount), TIMEOUT).map(drop)
    }

    /// Destroys the clone, if it exists. Another dataset of its name stays.
    pub(crate) fn remove(&self) -> Result<(), String> {
        match if_exists(run(ZFS, &self.find_origin(), TIMEOUT))? {
            Some(origin) if origin.trim() == self.snapshot => {
                run(ZFS, &self.destroy(), TIMEOUT).map(drop)
            }
            _ => Ok(()),
        }
    }
}

/// Returns the arguments that print a property of a dataset or snapshot.
fn list<'a>(property: &'a str, kind: &'a str, name: &'a str) -> Vec<&'a str> {
    vec!["list", "-H", "-o", property, "-t", kind, name]
}

/// Returns the output of `zfs list`; `None` if the dataset or snapshot does not exist (`EZFS_NOENT` of libzfs).
fn if_exists(listed: Result<String, String>) -> Result<Option<String>, String> {
    match listed {
        Err(error) if error.ends_with("dataset does not exist") => Ok(None),
        listed => listed.map(Some),
    }
}

/// Runs a program with an empty environment. Returns its output; the error of a failure contains it.
fn run(program: &str, args: &[&str], timeout: Duration) -> Result<String, String> {
    let failed = |problem: &str| format!("{program} {}: {problem}", args.join(" "));
    let io_failed = |error: io::Error| failed(&error.to_string());
    let (mut output, theirs) = UnixStream::pair().map_err(io_failed)?;
    output.set_nonblocking(true).map_err(io_failed)?;
    let errors = OwnedFd::from(theirs.try_clone().map_err(io_failed)?);
    let mut child = Command::new(program)
        .args(args)
        .env_clear()
        .env("PATH", "/sbin:/bin:/usr/sbin:/usr/bin")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::from(OwnedFd::from(theirs)))
        .stderr(Stdio::from(errors))
        .spawn()
        .map_err(io_failed)?;
    let deadline = Instant::now() + timeout;
    let mut text = Vec::new();
    let status = loop {
        // A program that writes more than the socket holds must not wait. What is not used is dropped.
        let _ = output.by_ref().take(MAX_OUTPUT).read_to_end(&mut text);
        text.truncate(MAX_OUTPUT as usize);
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(CHECK_INTERVAL),
            result => {
                let _ = child.kill();
                let _ = child.wait();
                let late = format!("it did not end within {timeout:?}");
                let problem = result.err().map_or(late, |error| error.to_string());
                return Err(failed(&problem));
            }
        }
    };
    let _ = output.take(MAX_OUTPUT).read_to_end(&mut text);
    text.truncate(MAX_OUTPUT as usize);
    let text = String::from_utf8_lossy(&text).into_owned();
    match status.success() {
        true => Ok(text),
        false => Err(failed(&format!("{status}: {}", text.trim()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_of_a_clone_match_snapshot() {
        let jail: JailName = "colibri-k3x9".parse().unwrap();
        let clone = ZfsClone::new("zroot/jails/agents", &jail);
        let commands = [
            clone.find_snapshot(),
            clone.create("mountpoint=/var/run/colibri-roots/colibri-k3x9"),
            clone.find_origin(),
            clone.destroy(),
        ];
        insta::assert_snapshot!(commands.map(|args| args.join("|")).join("\n"), @"
        list|-H|-o|name|-t|snapshot|zroot/jails/agents@colibri
        clone|-o|mountpoint=/var/run/colibri-roots/colibri-k3x9|-o|readonly=off|zroot/jails/agents@colibri|zroot/jails/colibri-k3x9
        list|-H|-o|origin|-t|filesystem|zroot/jails/colibri-k3x9
        destroy|-f|zroot/jails/colibri-k3x9
        ");
        assert_eq!(ZfsClone::new("zroot", &jail).dataset, "zroot/colibri-k3x9");
    }

    #[test]
    fn only_a_missing_dataset_is_no_error() {
        let listed =
            |error: &str| if_exists(Err(format!("/sbin/zfs list a: exit status: 1: {error}")));
        assert_eq!(
            if_exists(Ok("a@b\n".to_owned())),
            Ok(Some("a@b\n".to_owned()))
        );
        assert_eq!(listed("cannot open 'a': dataset does not exist"), Ok(None));
        for error in [
            "cannot open 'a': permission denied",
            "it did not end within 30s",
        ] {
            assert!(listed(error).is_err(), "{error}");
        }
    }

    #[test]
    fn failed_or_late_command_is_an_error() {
        let shell = |script: &str| run("/bin/sh", &["-c", script], Duration::from_millis(500));
        assert_eq!(shell("echo zroot/a@colibri").unwrap(), "zroot/a@colibri\n");
        let error = shell("echo dataset is busy >&2; exit 1").unwrap_err();
        assert!(
            error.ends_with("exit status: 1: dataset is busy"),
            "{error}"
        );
        for script in ["exec sleep 30", "sleep 2 & exec sleep 30"] {
            assert!(shell(script).unwrap_err().contains("did not end within"));
        }
        let long = shell("yes | head -c 300000").unwrap();
        assert_eq!(long.len(), MAX_OUTPUT as usize);
        assert!(run("/nonexistent", &[], TIMEOUT).is_err());
    }
}
