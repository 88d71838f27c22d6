//! Limits are enforced, or the spawn is refused. scripts/cgroups.sh tests cgroups in a virtual machine, because few
//! hosts delegate cgroups to a test.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use colibri_tests::{Daemon, NO_JAIL_AND_SANDBOX, text};
use serde_json::json;

/// Python program that needs 300 MiB of memory.
const FILL_MEMORY: &str = "x = bytearray(300 << 20); print('filled')";

#[test]
fn open_files_limit_applies_to_each_process() {
    let daemon = Daemon::start();
    for jail in NO_JAIL_AND_SANDBOX {
        let output = daemon.cli(
            &[
                &["run", "--open-files", "20"],
                jail,
                &[
                    "--",
                    "sh",
                    "-c",
                    "ulimit -Sn; ulimit -Hn; sh -c 'ulimit -n'",
                ],
            ]
            .concat(),
        );
        assert_eq!(text(&output.stdout), "20\n20\n20\n", "{output:?}");
    }
    let output = daemon.cli(&["run", "--open-files", "2000000000", "--", "true"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(
        text(&output.stderr).contains("limit --open-files cannot be enforced"),
        "{output:?}"
    );
}

/// The limit is enforced on a host with cgroups, and refused on another one.
#[test]
fn limit_of_the_whole_agent_is_enforced_or_refused() {
    let daemon = Daemon::start();
    let fill_memory = |options: &[&str]| {
        daemon.cli(
            &[
                &["run", "--jail-path", "/"],
                options,
                &["--", "python3", "-c", FILL_MEMORY],
            ]
            .concat(),
        )
    };
    assert_eq!(text(&fill_memory(&[]).stdout), "filled\n");
    let limited = fill_memory(&["--memory", "100M"]);
    assert_ne!(limited.status.code(), Some(0), "{limited:?}");
    assert_eq!(text(&limited.stdout), "");
    let agents = daemon.agents();
    let started = agents.len();
    if text(&limited.stderr).contains("limit --memory cannot be enforced") {
        assert_eq!(started, 1, "no agent was started");
    } else {
        assert_eq!(started, 2);
        let error = json!(agents).to_string();
        assert!(error.contains("its memory limit was reached"), "{error}");
    }
    // With `--best-effort` the limit applies at least to each process.
    let best_effort = fill_memory(&["--memory", "100M", "--best-effort"]);
    assert_ne!(best_effort.status.code(), Some(0), "{best_effort:?}");
    assert_eq!(text(&best_effort.stdout), "", "{best_effort:?}");
    let refused = text(&limited.stderr).contains("cannot be enforced");
    let warned = text(&best_effort.stderr).contains("colibri: limit --memory is not enforced: ");
    assert_eq!(
        warned, refused,
        "a warning reports a limit that is not enforced: {best_effort:?}"
    );
}

#[test]
fn limits_are_shown_and_survive_a_daemon_restart() {
    let mut daemon = Daemon::start();
    let id = daemon.spawn(&[
        "--open-files",
        "32",
        "--wall-time",
        "1h30m",
        "--",
        "sleep",
        "1000",
    ]);
    let expected = json!({"open_files": 32, "wall_time": "90m"});
    assert_eq!(daemon.agent(&id)["jail"]["limits"], expected);
    daemon.kill();
    daemon.launch();
    assert_eq!(daemon.agent(&id)["jail"]["limits"], expected);
    // Limits alone do not create a jail.
    daemon.cli_ok(&["kill", "--grace", "0s", &id]);
}
