//! Commands that cannot create a thread report it and do not panic.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use colibri_tests::helper::{as_user, copy_programs_for};
use colibri_tests::{is_root_or_skipped, text, wait_until};

/// A dedicated user, because process limits count all processes of a user.
const USER: &str = "colibri-threadless";

#[test]
fn commands_without_threads_report_it_and_do_not_panic() {
    // Process limits do not apply to root, so the commands run as another user.
    if !is_root_or_skipped("the commands run as another user") {
        return;
    }
    let dir = copy_programs_for(USER);
    let colibri = dir.path().join("colibri").display().to_string();
    let call = |limit: &[&str], args: &[&str]| {
        as_user(USER, &[limit, &[&colibri], args].concat())
            .env("HOME", dir.path())
            .output()
            .unwrap()
    };
    let id = text(&call(&[], &["spawn", "--no-jail", "--", "sleep", "1000"]).stdout);
    let id = id.trim();
    assert!(!id.is_empty());
    // The daemon, the shim and the agent exceed this limit.
    let limit = ["prlimit", "--nproc=1"];
    for args in [
        &["attach", id][..],
        &["logs", "-f", id],
        &["events"],
        &["run", "--no-jail", "--", "true"],
    ] {
        let output = call(&limit, args);
        let message = text(&output.stderr);
        assert!(!output.status.success(), "{args:?}");
        assert!(
            output.status.code().is_some_and(|code| code != 101),
            "{args:?}: {message}"
        );
        assert!(!message.contains("panicked"), "{args:?}: {message}");
        assert!(message.contains("threads"), "{args:?}: {message}");
    }
    for args in [&["ps"][..], &["status", id], &["logs", id]] {
        let output = call(&limit, args);
        assert!(output.status.success(), "{args:?}: {output:?}");
    }
    call(&[], &["rm", "-f", id]);
    let output = call(&[], &["shutdown"]);
    assert!(output.status.success(), "{output:?}");
    let socket = dir.path().join(".local/state/colibri/colibri.sock");
    wait_until("the daemon has ended", || !socket.exists());
}
