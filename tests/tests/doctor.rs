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

use colibri_tests::{Daemon, program, text};
use serde_json::Value;

/// Uid of another user.
const NOBODY: u32 = 65534;

/// A directory that doctor checks, and its findings.
struct Ward {
    daemon: Daemon,
    shown: String,
}

impl Ward {
    fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "this test mounts over programs and gives directories away: run the tests as root, as in: sudo -E make test"
        );
        Self {
            daemon: Daemon::place(),
            shown: String::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.daemon.path(name)
    }

    fn directory(&self, name: &str, mode: u32) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }

    fn file(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }

    /// Returns a doctor command that runs after the shell commands `setup` in separate namespaces.
    fn command(&self, variables: &[(&str, &Path)], before: &str) -> Command {
        let doctor = self.daemon.command("colibri");
        let mut command = Command::new("unshare");
        // The limit can be changed only in a separate user namespace.
        let user: &[&str] = match before.contains("max_user_namespaces") {
            true => &["--user", "--map-root-user"],
            false => &[],
        };
        command
            .args(user)
            .args(["--mount", "--", "sh", "-c"])
            .arg(format!("set -e; {before}\nexec \"$@\""))
            .arg("sh")
            .arg(doctor.get_program())
            .arg("doctor")
            .env_clear()
            .envs(
                doctor
                    .get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            )
            .envs(variables.iter().copied());
        command
    }

    /// Records warnings and failures.
    fn look(&mut self, title: &str, variables: &[(&str, &Path)], before: &str) {
        let command = self.command(variables, before);
        self.show(title, command);
    }

    fn show(&mut self, title: &str, mut command: Command) {
        let output = command.output().unwrap();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(!out.is_empty(), "{title}: {err}");
        assert!(!err.contains("panicked"), "{title}: {err}");
        writeln!(
            self.shown,
            "{title}: exit code {}",
            output.status.code().unwrap()
        )
        .unwrap();
        let mut ill = false;
        for line in without_limits(&out).lines() {
            ill = line.starts_with("warn")
                || line.starts_with("fail")
                || (ill && line.starts_with(' '));
            if ill {
                writeln!(self.shown, "  {line}").unwrap();
            }
        }
        self.shown.push('\n');
    }

    /// Returns the findings without machine-specific paths.
    fn masked(&self) -> String {
        let place = self.path("");
        let programs = program("colibri");
        self.shown
            .replace(place.to_str().unwrap(), "PLACE/")
            .replace(programs.parent().unwrap().to_str().unwrap(), "BIN")
    }
}

/// Removes the findings on limits, which depend on the machine.
fn without_limits(text: &str) -> String {
    let mut of_limit = false;
    let kept = text.lines().filter(|line| {
        of_limit = line.get(6..).is_some_and(|what| what.starts_with("limit "))
            || (of_limit && line.starts_with(' '));
        !of_limit
    });
    kept.map(|line| format!("{line}\n")).collect()
}

/// Replaces numbers in `ok` lines.
fn without_numbers(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars() {
        match c {
            '0'..='9' if shown.ends_with('N') => {}
            '0'..='9' => shown.push('N'),
            c => shown.push(c),
        }
    }
    shown
}

#[test]
fn healthy_host_lists_all_checks() {
    let mut ward = Ward::new();
    let output = ward.command(&[], "").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
    let found = text(&output.stdout);
    for limit in ["memory", "processes", "cpu"] {
        let enforced = format!("ok    limit {limit} can be enforced");
        let (missing, fix) = (
            format!("warn  limit {limit} cannot be enforced: "),
            "      fix: ",
        );
        assert!(
            found.contains(&enforced) || (found.contains(&missing) && found.contains(fix)),
            "{found}"
        );
    }
    ward.shown = without_limits(&found);
    assert_eq!(
        text(&output.stderr).lines().count(),
        1,
        "{}",
        text(&output.stderr)
    );
    assert!(!ward.daemon.state().exists(), "it has made something");
    insta::assert_snapshot!(without_numbers(&ward.masked()));
}

#[test]
fn missing_engine_requirements_are_findings() {
    let mut ward = Ward::new();
    let bwrap = "/usr/bin/bwrap";
    let over = |path: &Path| format!("mount --bind {} {bwrap}", path.display());
    let plain = ward.file("plain", "", 0o644);
    ward.look("bwrap is no program", &[], &over(&plain));
    let hangs = ward.file("hangs", "#!/bin/sh\nexec sleep 1000\n", 0o755);
    ward.look("bwrap hangs", &[], &over(&hangs));
    let refuses = ward.file(
        "refuses",
        "#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2; exit 1\n",
        0o755,
    );
    ward.look("bwrap is refused", &[], &over(&refuses));
    ward.look(
        "AppArmor refuses it",
        &[],
        &format!(
            "{}; mount -t tmpfs none /proc/sys/kernel; echo 1 > /proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            over(&refuses)
        ),
    );
    ward.look(
        "user namespaces are forbidden",
        &[],
        "echo 0 > /proc/sys/user/max_user_namespaces",
    );
    ward.look(
        "the shim is missing",
        &[("COLIBRI_SHIM", Path::new("/absent/shim"))],
        "",
    );
    ward.look("the shim is no program", &[("COLIBRI_SHIM", &plain)], "");
    let freebsd = [("COLIBRI_JAIL_ENGINE", Path::new("freebsd"))];
    ward.look("another system's engine", &freebsd, "");
    insta::assert_snapshot!(ward.masked());
}

#[test]
fn directory_and_disk_problems_are_findings() {
    let mut ward = Ward::new();
    let open = ward.directory("open", 0o770);
    ward.look(
        "state: its group can write it",
        &[("COLIBRI_STATE_DIR", &open)],
        "",
    );
    let theirs = ward.directory("theirs", 0o700);
    chown(&theirs, Some(NOBODY), None).unwrap();
    ward.look(
        "state: somebody else's",
        &[("COLIBRI_STATE_DIR", &theirs)],
        "",
    );
    let file = ward.file("file", "", 0o600);
    ward.look("state: a file", &[("COLIBRI_STATE_DIR", &file)], "");
    ward.look(
        "state: relative",
        &[("COLIBRI_STATE_DIR", Path::new("here"))],
        "",
    );
    ward.look(
        "state: cannot be made",
        &[("COLIBRI_STATE_DIR", Path::new("/sys/colibri"))],
        "mount -o remount,bind,ro /sys || mount -t tmpfs -o ro none /sys",
    );
    let own = ward.directory("state", 0o700);
    let at = own.display();
    let tmpfs = format!("mount -t tmpfs -o size=1m,mode=0700 none {at}");
    ward.look(
        "disk: full",
        &[],
        &format!("{tmpfs}; cat /dev/zero > {at}/ballast 2>/dev/null || true"),
    );
    ward.look(
        "disk: read-only",
        &[],
        &format!("{tmpfs}; mount -o remount,ro {at}"),
    );
    ward.look(
        "disk: little room",
        &[],
        &format!("mount -t tmpfs -o size=8m,mode=0700 none {at}"),
    );
    ward.look(
        "disk: few files",
        &[],
        &format!("mount -t tmpfs -o size=900m,nr_inodes=50,mode=0700 none {at}"),
    );
    let socket = ward.directory("socket", 0o777).join("s");
    ward.look(
        "socket: everybody can write its directory",
        &[("COLIBRI_SOCKET", &socket)],
        "",
    );
    ward.look(
        "socket: in somebody else's directory",
        &[("COLIBRI_SOCKET", &theirs.join("s"))],
        "",
    );
    let long = ward.path(&"x".repeat(100)).join("s");
    ward.look("socket: too long", &[("COLIBRI_SOCKET", &long)], "");
    ward.look(
        "socket: relative",
        &[("COLIBRI_SOCKET", Path::new("s"))],
        "",
    );
    ward.look("few descriptors", &[], "ulimit -n 100");
    ward.look(
        "few at first: the daemon raises it",
        &[],
        "ulimit -Sn 32; ulimit -Hn 4096",
    );
    ward.look("next to no descriptors", &[], "ulimit -n 32");
    insta::assert_snapshot!(ward.masked());
}

#[test]
fn helper_and_policy_problems_are_findings() {
    let mut ward = Ward::new();
    let helper = ward.path("helper");
    fs::copy(program("colibri-jail-helper"), &helper).unwrap();
    let absent = ward.path("absent");
    let mode = |mode| fs::set_permissions(&helper, Permissions::from_mode(mode)).unwrap();
    let with = |path: &'static str| ("COLIBRI_JAIL_PRIV_MODE", Path::new(path));
    let variables = [with("helper"), ("COLIBRI_JAIL_HELPER", helper.as_path())];
    ward.look(
        "missing",
        &[with("helper"), ("COLIBRI_JAIL_HELPER", &absent)],
        "",
    );
    mode(0o755);
    ward.look("not setuid", &variables, "");
    mode(0o4777);
    ward.look("others can write it", &variables, "");
    mode(0o4755);
    chown(&helper, Some(NOBODY), None).unwrap();
    ward.look("not root's", &variables, "");
    chown(&helper, Some(0), None).unwrap();
    mode(0o4755);
    // A separate /etc with a valid policy.
    let etc = ward.path("etc");
    let policy = "syslog = \"best-effort\"\n[[rule]]\ncallers = [\"root\"]\njails = [\"colibri-*\"]\nroots = [\"/\"]\nusers = [\"nobody\"]\nprograms = [\"*\"]\nip4 = [\"inherit\"]\n";
    let policy = ward.file("policy", policy, 0o644);
    let with_policy = |then: &str| {
        format!(
            "rm -rf {etc}; cp -a /etc {etc}; mkdir -p {etc}/colibri; chmod 755 {etc}/colibri; cp {} {etc}/colibri/helper.toml; mount --bind {etc} /etc; cd /etc/colibri; {then}",
            policy.display(),
            etc = etc.display()
        )
    };
    ward.look("all is well", &variables, &with_policy(":"));
    ward.look("no policy", &variables, &with_policy("rm helper.toml"));
    ward.look(
        "others can write the policy",
        &variables,
        &with_policy("chmod 666 helper.toml"),
    );
    ward.look(
        "the policy is somebody else's",
        &variables,
        &with_policy("chown nobody helper.toml"),
    );
    ward.look(
        "others can write the directory above",
        &variables,
        &with_policy("chmod 777 ."),
    );
    ward.look(
        "the policy is broken",
        &variables,
        &with_policy("echo '[[' >> helper.toml"),
    );
    ward.look(
        "this user is not in it",
        &variables,
        &with_policy("sed -i 's/\"root\"/\"nobody\"/' helper.toml"),
    );
    insta::assert_snapshot!(ward.masked());
}

#[test]
fn settings_problems_are_findings() {
    let mut ward = Ward::new();
    for (variable, value) in [
        ("COLIBRI_JAIL_PRIV_MODE", "doas"),
        ("COLIBRI_JAIL_PRIV_MODE", "mdo"),
        ("COLIBRI_JAIL_ENGINE", "docker"),
    ] {
        ward.look(
            &format!("{variable}={value}"),
            &[(variable, Path::new(value))],
            "",
        );
    }
    let config = ward.directory("config/colibri", 0o755).join("colibri.toml");
    fs::write(config, "state_dir = 1\n").unwrap();
    ward.look(
        "a broken file",
        &[("XDG_CONFIG_HOME", &ward.path("config"))],
        "",
    );
    insta::assert_snapshot!(ward.masked());
}

#[test]
fn foreign_socket_is_a_finding_and_other_checks_run() {
    let mut ward = Ward::new();
    ward.directory("run", 0o700);
    let listener = UnixListener::bind(ward.daemon.socket()).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            drop(stream);
        }
    });
    ward.look("hangs up", &[], "");
    assert!(
        ward.shown.contains("hangs up: exit code 1"),
        "{}",
        ward.shown
    );
    assert!(
        ward.shown.contains("find the process that has the socket"),
        "{}",
        ward.shown
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
    let well = doctor();
    assert_eq!(well.status.code(), Some(0), "{}", text(&well.stdout));
    assert!(
        findings(&well)
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
    let ill = doctor();
    assert_eq!(ill.status.code(), Some(1));
    let failed: Vec<_> = findings(&ill)
        .into_iter()
        .filter(|finding| finding["status"] == "fail")
        .collect();
    assert_eq!(failed.len(), 2, "{failed:?}");
    for finding in &failed {
        let mend = finding["fix"].as_str().unwrap();
        assert!(mend.contains("run: chmod 700"), "{finding}");
    }
    fs::set_permissions(daemon.state(), Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(
        daemon.socket().parent().unwrap(),
        Permissions::from_mode(0o700),
    )
    .unwrap();
    let open = doctor();
    assert!(
        text(&open.stdout).contains("open to everybody"),
        "{}",
        text(&open.stdout)
    );
}
