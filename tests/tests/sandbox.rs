//! The rights of an agent in a sandbox, tested by scripts that run in one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use colibri_tests::{Daemon, NO_JAIL_AND_SANDBOX, text};

/// Runs a script in a sandbox and returns stdout and stderr.
fn run_in_sandbox(daemon: &Daemon, options: &[&str], script: &str) -> String {
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
    let output = run_in_sandbox(
        &daemon,
        &[],
        &format!(
            "touch /etc/x /usr/x /x; ls {}; echo mine > /tmp/x && cat /tmp/x",
            host.path().display()
        ),
    );
    assert_eq!(
        output.matches("Read-only file system").count()
            + output.matches("Permission denied").count(),
        3,
        "{output}"
    );
    assert!(
        output.contains("No such file") && output.contains("mine"),
        "{output}"
    );
}

#[test]
fn sandbox_has_no_capabilities_and_a_private_pid_namespace() {
    let daemon = Daemon::start();
    let output = run_in_sandbox(
        &daemon,
        &[],
        "grep CapEff /proc/self/status; ls -d /proc/[0-9]* | wc -l; mount -t tmpfs x /mnt",
    );
    assert!(output.contains("CapEff:\t0000000000000000"), "{output}");
    let count: u32 = output.lines().nth(1).unwrap().trim().parse().unwrap();
    assert!(count <= 4, "{count} processes visible");
    assert!(output.contains("mount:"), "{output}");
}

#[test]
fn ip4_option_selects_the_host_network_or_none() {
    let daemon = Daemon::start();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let script = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{} && echo connected",
        listener.local_addr().unwrap().port()
    );
    for host in [["--jail-ip4", "inherit"], ["--network", "host"]] {
        assert!(run_in_sandbox(&daemon, &host, &script).contains("connected"));
    }
    for none in [&["--jail-ip4", "disable"][..], &["--network", "none"], &[]] {
        let refused = run_in_sandbox(&daemon, none, &script);
        assert!(
            refused.contains("Connection refused") && !refused.contains("connected"),
            "{refused}"
        );
    }
}

#[test]
fn daemon_socket_and_state_are_hidden() {
    let daemon = Daemon::start();
    let output = run_in_sandbox(
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
        assert!(!output.contains(name), "{name} is visible:\n{output}");
    }
}

#[test]
fn cwd_and_user_options_apply_in_the_sandbox() {
    let daemon = Daemon::start();
    assert_eq!(run_in_sandbox(&daemon, &[], "pwd"), "/\n");
    assert_eq!(
        run_in_sandbox(&daemon, &["--cwd", "/usr/bin"], "pwd"),
        "/usr/bin\n"
    );
    assert_eq!(
        run_in_sandbox(&daemon, &["--jail-user", "1234:1235"], "id -u; id -g"),
        "1234\n1235\n"
    );
    assert_eq!(
        run_in_sandbox(&daemon, &["--jail-user", "daemon"], "id -un"),
        "daemon\n"
    );
}

#[test]
fn environment_has_base_and_requested_variables() {
    let daemon = Daemon::start();
    let output = run_in_sandbox(&daemon, &["--env", "TOKEN=a b=c"], "env");
    assert!(
        output.contains("TOKEN=a b=c\n") && output.contains("PATH="),
        "{output}"
    );
    assert!(!output.contains("COLIBRI_SOCKET"), "{output}");
}

#[test]
fn agent_inherits_no_descriptor_of_the_daemon() {
    let mut daemon = Daemon::prepare();
    // With an open directory, an agent could leave the sandbox.
    let with_descriptors = ["sh", "-c", "exec 7</ 9</etc/passwd; exec \"$@\"", "sh"];
    daemon.launch_with_prefix(&with_descriptors.map(str::to_owned));
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
    let names: Vec<String> = descriptors
        .flatten()
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    assert!(
        names.contains(&"7".to_owned()) && names.contains(&"9".to_owned()),
        "{names:?}"
    );
    for jail in NO_JAIL_AND_SANDBOX {
        let args = [
            &["run"],
            jail,
            &["--", "sh", "-c", "cd /proc/$$/fd && echo *"],
        ]
        .concat();
        let output = daemon.cli(&args);
        // 3 is the directory that the shell reads.
        let descriptors = text(&output.stdout);
        assert_eq!(descriptors, "0 1 2 3\n", "{}", text(&output.stderr));
    }
}
