//! `colibri jail init` as a whole program: results, exit codes, and runs that are interrupted.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use colibri_tests::{program, text};
use rustix::process::{Pid, Signal, kill_process};

/// Number of files in the archive: enough that a signal arrives before the end.
const FILES: usize = 4000;

struct Template {
    dir: tempfile::TempDir,
}

impl Template {
    /// Creates the archive of a small Linux system.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let system = dir.path().join("system");
        fs::create_dir_all(system.join("etc")).unwrap();
        fs::write(system.join("etc/passwd"), "root::0:0::/root:/bin/sh\n").unwrap();
        for number in 0..FILES {
            fs::write(system.join(format!("file{number}")), "content").unwrap();
        }
        let tar = Command::new("tar")
            .current_dir(&system)
            .args(["-cf", "../system.tar", "."])
            .status();
        assert!(tar.unwrap().success());
        fs::remove_dir_all(system).unwrap();
        let sums = Command::new("sha256sum")
            .current_dir(dir.path())
            .arg("system.tar")
            .output();
        fs::write(dir.path().join("sums"), sums.unwrap().stdout).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program("colibri"));
        let init = ["jail", "init", "jail", "--from", "system.tar"];
        command.current_dir(self.dir.path()).args(init).args(args);
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn staging(&self) -> Option<PathBuf> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        entries
            .map(|entry| entry.unwrap().path())
            .find(|path| path.display().to_string().contains(".jail.colibri-init."))
    }

    /// Starts the command, and sends a signal as soon as it unpacks. Returns its exit code.
    fn interrupt(&self, signal: Signal) -> Option<i32> {
        let mut child = self
            .command(&["--checksums", "sums"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self
            .staging()
            .is_some_and(|path| path.join("root/etc").exists())
        {
            assert!(Instant::now() < deadline, "no staging directory");
            assert!(
                child.try_wait().unwrap().is_none(),
                "it ended before the signal"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        kill_process(Pid::from_child(&child), signal).unwrap();
        child.wait().unwrap().code()
    }
}

#[test]
fn template_is_created_and_reported() {
    let template = Template::new();
    let output = template.run(&["--checksums", "sums", "--mount-point", "/work"]);
    assert!(output.status.success(), "{output:?}");
    let report = text(&output.stdout);
    for line in [
        "locked, had an empty password: root",
        &format!("{} files and directories", FILES + 3),
        "use it: colibri run --jail-path /",
    ] {
        assert!(report.contains(line), "no {line}: {report}");
    }
    let passwd = fs::read_to_string(template.path("jail/etc/passwd")).unwrap();
    assert!(passwd.starts_with("root:*:"), "{passwd}");
    assert!(passwd.contains("\nagent:x:1000:1000:"), "{passwd}");
    assert!(template.path("jail/work").is_dir());
    let again = template.run(&["--checksums", "sums", "--json"]);
    assert_eq!(again.status.code(), Some(1));
    fs::remove_dir_all(template.path("jail")).unwrap();
    let again = template.run(&["--checksums", "sums", "--json", "--no-user"]);
    let report: serde_json::Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(report["entries"], FILES + 3);
    assert_eq!(report["user"], serde_json::Value::Null);
}

#[test]
fn invalid_options_are_usage_errors() {
    let template = Template::new();
    for args in [
        &["--digest", "md5:1"][..],
        &["--user", "Root:"],
        &["--mount-point", "work"],
        &["--mount-point", "/../work"],
        &["--zfs", "-r"],
        &["--max-size", "-1"],
        &["--user", "a", "--no-user"],
    ] {
        let output = template.run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
    }
    let output = template.run(&[]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(message.contains("pass --digest sha256:HEX"), "{message}");
    assert!(!Path::new(&template.path("jail")).exists());
}

#[test]
fn interrupted_run_leaves_no_template() {
    let template = Template::new();
    assert_eq!(template.interrupt(Signal::INT), Some(130));
    assert_eq!(template.staging(), None);
    assert!(!template.path("jail").exists());
    assert_eq!(template.interrupt(Signal::TERM), Some(143));
    assert_eq!(template.staging(), None);
    // Nothing can react to SIGKILL: the next run removes the rest.
    assert_eq!(template.interrupt(Signal::KILL), None);
    assert!(template.staging().is_some());
    assert!(!template.path("jail").exists());
    assert!(template.run(&["--checksums", "sums"]).status.success());
    assert_eq!(template.staging(), None);
}
