//! The rights of a confined agent, tested from inside.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use colibri_tests::{Daemon, text};

fn inside(daemon: &Daemon, options: &[&str], script: &str) -> String {
    let args: Vec<&str> = [
        &["run", "--jail-path", "/"],
        options,
        &["--", "bash", "-c", script],
    ]
    .concat();
    let output = daemon.cli(&args);
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

#[test]
fn root_is_read_only_and_tmp_is_private() {
    let daemon = Daemon::start();
    let host = tempfile::NamedTempFile::new_in("/tmp").unwrap();
    let seen = inside(
        &daemon,
        &[],
        &format!(
            "touch /etc/x /usr/x /root/x; ls {}; echo mine > /tmp/x && cat /tmp/x",
            host.path().display()
        ),
    );
    assert_eq!(
        seen.matches("Read-only file system").count() + seen.matches("Permission denied").count(),
        3,
        "{seen}"
    );
    assert!(
        seen.contains("No such file") && seen.contains("mine"),
        "{seen}"
    );
}

#[test]
fn sandbox_has_no_capabilities_and_a_private_pid_namespace() {
    let daemon = Daemon::start();
    let seen = inside(
        &daemon,
        &[],
        "grep CapEff /proc/self/status; ls -d /proc/[0-9]* | wc -l; mount -t tmpfs x /mnt",
    );
    assert!(seen.contains("CapEff:\t0000000000000000"), "{seen}");
    let count: u32 = seen.lines().nth(1).unwrap().trim().parse().unwrap();
    assert!(count <= 4, "{count} processes visible");
    assert!(seen.contains("mount:"), "{seen}");
}

#[test]
fn network_is_the_hosts_or_disabled() {
    let daemon = Daemon::start();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let script = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{} && echo connected",
        listener.local_addr().unwrap().port()
    );
    assert!(inside(&daemon, &[], &script).contains("connected"));
    let refused = inside(&daemon, &["--jail-ip4", "disable"], &script);
    assert!(
        refused.contains("Connection refused") && !refused.contains("connected"),
        "{refused}"
    );
}

#[test]
fn daemon_socket_and_state_are_hidden() {
    let daemon = Daemon::start();
    let seen = inside(
        &daemon,
        &[],
        &format!(
            "ls -A {} {} /run/user; test -e {} && echo reachable",
            daemon.state().display(),
            daemon.socket().parent().unwrap().display(),
            daemon.socket().display()
        ),
    );
    for name in ["agents", "audit", "colibri.sock", "reachable"] {
        assert!(!seen.contains(name), "{name} is visible:\n{seen}");
    }
}

#[test]
fn cwd_and_user_are_those_of_the_sandbox() {
    let daemon = Daemon::start();
    assert_eq!(inside(&daemon, &[], "pwd"), "/\n");
    assert_eq!(inside(&daemon, &["--cwd", "/usr/bin"], "pwd"), "/usr/bin\n");
    assert_eq!(
        inside(&daemon, &["--jail-user", "1234:1235"], "id -u; id -g"),
        "1234\n1235\n"
    );
    assert_eq!(
        inside(&daemon, &["--jail-user", "daemon"], "id -un"),
        "daemon\n"
    );
}

#[test]
fn environment_is_the_base_plus_given_variables() {
    let daemon = Daemon::start();
    let seen = inside(&daemon, &["--env", "TOKEN=a b=c"], "env");
    assert!(
        seen.contains("TOKEN=a b=c\n") && seen.contains("PATH="),
        "{seen}"
    );
    assert!(!seen.contains("COLIBRI_SOCKET"), "{seen}");
}

#[test]
fn agent_inherits_no_descriptor_of_the_daemon() {
    let mut daemon = Daemon::prepare();
    // An open directory would lead out of the sandbox.
    let leaky = ["sh", "-c", "exec 7</ 9</etc/passwd; exec \"$@\"", "sh"];
    daemon.launch_with_prefix(&leaky.map(str::to_owned));
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
    let names: Vec<String> = descriptors
        .flatten()
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    assert!(
        names.contains(&"7".to_owned()) && names.contains(&"9".to_owned()),
        "{names:?}"
    );
    for jail in [&[][..], &["--jail-path", "/"]] {
        let args = [
            &["run"],
            jail,
            &["--", "sh", "-c", "cd /proc/$$/fd && echo *"],
        ]
        .concat();
        let output = daemon.cli(&args);
        let seen = text(&output.stdout);
        // 3 is the directory that the shell reads.
        assert_eq!(seen, "0 1 2 3\n", "{}", text(&output.stderr));
    }
}
