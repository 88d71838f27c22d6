//! `colibri doctor` on a host with one real defect at a time: the finding names the defect and a fix. Host-wide
//! defects are created in a separate mount or user namespace.
#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods
)]

use std::fmt::Write;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use colibri_tests::{Daemon, program, text, write_file};
use serde_json::Value;

/// Uid of another user.
const OTHER_USER: u32 = 65534;

/// The directory of a daemon that doctor checks, and the findings.
struct DoctorHost {
    daemon: Daemon,
    findings: String,
}

impl DoctorHost {
    fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "root is required to mount over programs and change owners; run: sudo -E make test"
        );
        Self {
            daemon: Daemon::prepare(),
            findings: String::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.daemon.path(name)
    }

    fn create_directory(&self, name: &str, mode: u32) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }

    fn create_file(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.path(name);
        write_file(&path, text, mode);
        path
    }

    /// Returns a command that runs the shell commands `setup` and then doctor, in separate namespaces.
    fn command(&self, variables: &[(&str, &Path)], setup: &str) -> Command {
        let mut command = self.daemon.external_command("unshare");
        // This limit can be changed only in a separate user namespace.
        let user_namespace: &[&str] = match setup.contains("max_user_namespaces") {
            true => &["--user", "--map-root-user"],
            false => &[],
        };
        command
            .args(user_namespace)
            .args(["--mount", "--", "sh", "-c"])
            .arg(format!("set -e; {setup}\nexec \"$@\""))
            .arg("sh")
            .arg(program("colibri"))
            .arg("doctor")
            .envs(variables.iter().copied());
        command
    }

    /// Runs doctor and adds its warnings and failures to the findings.
    fn check(&mut self, title: &str, variables: &[(&str, &Path)], setup: &str) {
        let output = self.command(variables, setup).output().unwrap();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(!out.is_empty(), "{title}: {err}");
        assert!(!err.contains("panicked"), "{title}: {err}");
        writeln!(
            self.findings,
            "{title}: exit code {}",
            output.status.code().unwrap()
        )
        .unwrap();
        let mut in_problem = false;
        for line in without_limits(&out).lines() {
            in_problem = line.starts_with("warn")
                || line.starts_with("fail")
                || (in_problem && line.starts_with(' '));
            if in_problem {
                writeln!(self.findings, "  {line}").unwrap();
            }
        }
        self.findings.push('\n');
    }

    /// Returns the findings with placeholders for the paths of this machine.
    fn masked_findings(&self) -> String {
        let directory = self.daemon.directory().to_str().unwrap();
        let programs = program("colibri");
        self.findings
            .replace(directory, "DIRECTORY")
            .replace(programs.parent().unwrap().to_str().unwrap(), "BIN")
    }
}

/// Removes the findings about limits, which depend on the machine.
fn without_limits(text: &str) -> String {
    let mut in_limit = false;
    let lines = text.lines().filter(|line| {
        in_limit = line
            .get(6..)
            .is_some_and(|finding| finding.starts_with("limit "))
            || (in_limit && line.starts_with(' '));
        !in_limit
    });
    lines.map(|line| format!("{line}\n")).collect()
}

/// Replaces each number with `N`.
fn mask_numbers(text: &str) -> String {
    let mut findings = String::new();
    for c in text.chars() {
        match c {
            '0'..='9' if findings.ends_with('N') => {}
            '0'..='9' => findings.push('N'),
            c => findings.push(c),
        }
    }
    findings
}

#[test]
fn healthy_host_lists_all_checks() {
    let mut host = DoctorHost::new();
    let output = host.command(&[], "").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
    let stdout = text(&output.stdout);
    for limit in ["memory", "processes", "cpu"] {
        let enforced = format!("ok    limit {limit} can be enforced");
        let not_enforced = format!("warn  limit {limit} cannot be enforced: ");
        let has_warning = stdout.contains(&not_enforced) && stdout.contains("      fix: ");
        assert!(stdout.contains(&enforced) || has_warning, "{stdout}");
    }
    host.findings = without_limits(&stdout);
    assert_eq!(
        text(&output.stderr).lines().count(),
        1,
        "{}",
        text(&output.stderr)
    );
    assert!(
        !host.daemon.state().exists(),
        "doctor created the state directory"
    );
    let findings = mask_numbers(&host.masked_findings());
    // What a later version of Landlock adds depends on the kernel.
    let wall = "a second wall under the mounts";
    let lines = findings.lines().map(|line| match line.split_once(wall) {
        Some((before, _)) => format!("{before}{wall}\n"),
        None => format!("{line}\n"),
    });
    insta::assert_snapshot!(lines.collect::<String>());
}

#[test]
fn missing_engine_requirements_are_findings() {
    let mut host = DoctorHost::new();
    let bwrap = "/usr/bin/bwrap";
    let mount_over_bwrap = |path: &Path| format!("mount --bind {} {bwrap}", path.display());
    let not_executable = host.create_file("plain", "", 0o644);
    host.check(
        "bwrap is not executable",
        &[],
        &mount_over_bwrap(&not_executable),
    );
    let hangs = host.create_file("hangs", "#!/bin/sh\nexec sleep 1000\n", 0o755);
    host.check("bwrap hangs", &[], &mount_over_bwrap(&hangs));
    let refuses = host.create_file(
        "refuses",
        "#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2; exit 1\n",
        0o755,
    );
    host.check("bwrap is refused", &[], &mount_over_bwrap(&refuses));
    host.check(
        "AppArmor refuses it",
        &[],
        &format!(
            "{}; mount -t tmpfs none /proc/sys/kernel; echo 1 > /proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            mount_over_bwrap(&refuses)
        ),
    );
    host.check(
        "user namespaces are forbidden",
        &[],
        "echo 0 > /proc/sys/user/max_user_namespaces",
    );
    host.check(
        "the shim is missing",
        &[("COLIBRI_SHIM", Path::new("/absent/shim"))],
        "",
    );
    host.check(
        "the shim is not executable",
        &[("COLIBRI_SHIM", &not_executable)],
        "",
    );
    let freebsd = [("COLIBRI_JAIL_ENGINE", Path::new("freebsd"))];
    host.check("another system's engine", &freebsd, "");
    insta::assert_snapshot!(host.masked_findings());
}

#[test]
fn directory_and_disk_problems_are_findings() {
    let mut host = DoctorHost::new();
    let group_writable = host.create_directory("open", 0o770);
    host.check(
        "state: its group can write it",
        &[("COLIBRI_STATE_DIR", &group_writable)],
        "",
    );
    let foreign = host.create_directory("theirs", 0o700);
    chown(&foreign, Some(OTHER_USER), None).unwrap();
    host.check(
        "state: another user's",
        &[("COLIBRI_STATE_DIR", &foreign)],
        "",
    );
    let file = host.create_file("file", "", 0o600);
    host.check("state: a file", &[("COLIBRI_STATE_DIR", &file)], "");
    host.check(
        "state: relative",
        &[("COLIBRI_STATE_DIR", Path::new("here"))],
        "",
    );
    host.check(
        "state: cannot be created",
        &[("COLIBRI_STATE_DIR", Path::new("/sys/colibri"))],
        "mount -o remount,bind,ro /sys || mount -t tmpfs -o ro none /sys",
    );
    let state = host.create_directory("state", 0o700);
    let path = state.display();
    let tmpfs = format!("mount -t tmpfs -o size=1m,mode=0700 none {path}");
    host.check(
        "disk: full",
        &[],
        &format!("{tmpfs}; cat /dev/zero > {path}/ballast 2>/dev/null || true"),
    );
    host.check(
        "disk: read-only",
        &[],
        &format!("{tmpfs}; mount -o remount,ro {path}"),
    );
    host.check(
        "disk: little space",
        &[],
        &format!("mount -t tmpfs -o size=8m,mode=0700 none {path}"),
    );
    host.check(
        "disk: few files",
        &[],
        &format!("mount -t tmpfs -o size=900m,nr_inodes=50,mode=0700 none {path}"),
    );
    let socket = host.create_directory("socket", 0o777).join("s");
    host.check(
        "socket: all users can write its directory",
        &[("COLIBRI_SOCKET", &socket)],
        "",
    );
    host.check(
        "socket: in another user's directory",
        &[("COLIBRI_SOCKET", &foreign.join("s"))],
        "",
    );
    let long = host.path(&"x".repeat(100)).join("s");
    host.check("socket: too long", &[("COLIBRI_SOCKET", &long)], "");
    host.check(
        "socket: relative",
        &[("COLIBRI_SOCKET", Path::new("s"))],
        "",
    );
    host.check("few descriptors", &[], "ulimit -n 100");
    host.check(
        "a low soft limit: the daemon raises it",
        &[],
        "ulimit -Sn 32; ulimit -Hn 4096",
    );
    host.check("almost no descriptors", &[], "ulimit -n 32");
    insta::assert_snapshot!(host.masked_findings());
}

#[test]
fn helper_and_policy_problems_are_findings() {
    let mut host = DoctorHost::new();
    let helper = host.path("helper");
    fs::copy(program("colibri-jail-helper"), &helper).unwrap();
    let absent = host.path("absent");
    let set_mode = |mode| fs::set_permissions(&helper, Permissions::from_mode(mode)).unwrap();
    let helper_mode = ("COLIBRI_JAIL_PRIV_MODE", Path::new("helper"));
    let variables = [helper_mode, ("COLIBRI_JAIL_HELPER", helper.as_path())];
    host.check(
        "missing",
        &[helper_mode, ("COLIBRI_JAIL_HELPER", &absent)],
        "",
    );
    set_mode(0o755);
    host.check("not setuid", &variables, "");
    set_mode(0o4777);
    host.check("others can write it", &variables, "");
    set_mode(0o4755);
    chown(&helper, Some(OTHER_USER), None).unwrap();
    host.check("not root's", &variables, "");
    chown(&helper, Some(0), None).unwrap();
    set_mode(0o4755);
    // A separate /etc with a valid policy.
    let etc = host.path("etc");
    let policy = "syslog = \"best-effort\"\n[[rule]]\ncallers = [\"root\"]\njails = [\"colibri-*\"]\nroots = [\"/\"]\nusers = [\"nobody\"]\nprograms = [\"*\"]\nip4 = [\"inherit\"]\n";
    let policy = host.create_file("policy", policy, 0o644);
    let with_policy = |change: &str| {
        format!(
            "rm -rf {etc}; cp -a /etc {etc}; mkdir -p {etc}/colibri; chmod 755 {etc}/colibri; cp {} {etc}/colibri/helper.toml; mount --bind {etc} /etc; cd /etc/colibri; {change}",
            policy.display(),
            etc = etc.display()
        )
    };
    host.check("no problem", &variables, &with_policy(":"));
    host.check("no policy", &variables, &with_policy("rm helper.toml"));
    host.check(
        "others can write the policy",
        &variables,
        &with_policy("chmod 666 helper.toml"),
    );
    host.check(
        "the policy is another user's",
        &variables,
        &with_policy("chown 65534 helper.toml"),
    );
    host.check(
        "others can write the directory above",
        &variables,
        &with_policy("chmod 777 ."),
    );
    host.check(
        "the policy is broken",
        &variables,
        &with_policy("echo '[[' >> helper.toml"),
    );
    host.check(
        "this user is not in it",
        &variables,
        &with_policy("sed -i 's/\"root\"/\"nobody\"/' helper.toml"),
    );
    insta::assert_snapshot!(host.masked_findings());
}

#[test]
fn settings_problems_are_findings() {
    let mut host = DoctorHost::new();
    for (variable, value) in [
        ("COLIBRI_JAIL_PRIV_MODE", "doas"),
        ("COLIBRI_JAIL_PRIV_MODE", "mdo"),
        ("COLIBRI_JAIL_ENGINE", "docker"),
    ] {
        host.check(
            &format!("{variable}={value}"),
            &[(variable, Path::new(value))],
            "",
        );
    }
    let config = host
        .create_directory("config/colibri", 0o755)
        .join("colibri.toml");
    fs::write(config, "state_dir = 1\n").unwrap();
    host.check(
        "a broken file",
        &[("XDG_CONFIG_HOME", &host.path("config"))],
        "",
    );
    insta::assert_snapshot!(host.masked_findings());
}

#[test]
fn foreign_socket_is_a_finding_and_other_checks_run() {
    let mut host = DoctorHost::new();
    host.create_directory("run", 0o700);
    let listener = UnixListener::bind(host.daemon.socket()).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            drop(stream);
        }
    });
    host.check("hangs up", &[], "");
    assert!(
        host.findings.contains("hangs up: exit code 1"),
        "{}",
        host.findings
    );
    assert!(
        host.findings
            .contains("find the process that has the socket"),
        "{}",
        host.findings
    );
}

#[test]
fn daemon_reports_problems_of_its_own_environment() {
    let daemon = Daemon::start();
    let doctor = || daemon.cli(&["doctor", "--json"]);
    let findings = |output: &std::process::Output| -> Vec<Value> {
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        answer["findings"].as_array().unwrap().clone()
    };
    let healthy = doctor();
    assert_eq!(healthy.status.code(), Some(0), "{}", text(&healthy.stdout));
    assert!(
        findings(&healthy)
            .iter()
            .filter(|finding| !finding["what"].as_str().unwrap().starts_with("limit "))
            .all(|finding| finding["status"] == "ok")
    );
    fs::set_permissions(daemon.state(), Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(
        daemon.socket().parent().unwrap(),
        Permissions::from_mode(0o777),
    )
    .unwrap();
    fs::set_permissions(daemon.socket(), Permissions::from_mode(0o666)).unwrap();
    let damaged = doctor();
    assert_eq!(damaged.status.code(), Some(1));
    let failed: Vec<_> = findings(&damaged)
        .into_iter()
        .filter(|finding| finding["status"] == "fail")
        .collect();
    assert_eq!(failed.len(), 2, "{failed:?}");
    for finding in &failed {
        let fix = finding["fix"].as_str().unwrap();
        assert!(fix.contains("run: chmod 700"), "{finding}");
    }
    fs::set_permissions(daemon.state(), Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(
        daemon.socket().parent().unwrap(),
        Permissions::from_mode(0o700),
    )
    .unwrap();
    let open = doctor();
    assert!(
        text(&open.stdout).contains("accessible to every user"),
        "{}",
        text(&open.stdout)
    );
}
