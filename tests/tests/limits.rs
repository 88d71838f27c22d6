//! Limits are enforced, or the spawn is refused. scripts/cgroups.sh tests cgroups in a virtual machine, because few
//! hosts delegate cgroups to a test.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use colibri_tests::{Daemon, text};
use serde_json::json;

const FILL: &str = "x = bytearray(300 << 20); print('filled')";

#[test]
fn open_files_limit_applies_to_each_process() {
    let daemon = Daemon::start();
    for jail in [&[][..], &["--jail-path", "/"]] {
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

/// The host decides which of the two applies.
#[test]
fn limit_of_the_whole_agent_is_enforced_or_refused() {
    let daemon = Daemon::start();
    let python = |options: &[&str]| {
        daemon.cli(
            &[
                &["run", "--jail-path", "/"],
                options,
                &["--", "python3", "-c", FILL],
            ]
            .concat(),
        )
    };
    assert_eq!(text(&python(&[]).stdout), "filled\n");
    let strict = python(&["--memory", "100M"]);
    assert_ne!(strict.status.code(), Some(0), "{strict:?}");
    assert_eq!(text(&strict.stdout), "");
    let agents = daemon.agents();
    let started = agents.len();
    if text(&strict.stderr).contains("limit --memory cannot be enforced") {
        assert_eq!(started, 1, "no agent was started");
    } else {
        assert_eq!(started, 2);
        let error = json!(agents).to_string();
        assert!(error.contains("its memory limit was reached"), "{error}");
    }
    // With `--best-effort` the limit applies to each process.
    let lax = python(&["--memory", "100M", "--best-effort"]);
    assert_ne!(lax.status.code(), Some(0), "{lax:?}");
    assert_eq!(text(&lax.stdout), "", "{lax:?}");
    let refused = text(&strict.stderr).contains("cannot be enforced");
    let warned = text(&lax.stderr).contains("colibri: limit --memory is not enforced: ");
    assert_eq!(
        warned, refused,
        "a limit that is not enforced is reported: {lax:?}"
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
    // Limits alone do not create a jail; the agent can be killed as usual.
    daemon.ok(&["kill", "--grace", "0s", &id]);
}
