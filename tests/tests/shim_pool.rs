//! The pre-started shim for the next agent.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use colibri_tests::{Daemon, eventually, kill_9, processes_with};

fn waiting(daemon: &Daemon) -> (String, i32) {
    eventually("a shim waits", || daemon.waiting())
}

fn gone(daemon: &Daemon, id: &str) {
    eventually("nothing is left of it", || {
        let directory = daemon.state().join("agents").join(id);
        (!directory.exists() && processes_with(id).is_empty()).then_some(())
    });
}

#[test]
fn spawn_takes_the_pooled_shim_and_refills_the_pool() {
    let daemon = Daemon::start();
    for _ in 0..3 {
        let (id, shim) = waiting(&daemon);
        assert!(!daemon.ok(&["ps"]).contains(&id), "it is no agent yet");
        let refused = daemon.cli(&["spawn", "--", "no-such-program"]);
        assert_eq!(refused.status.code(), Some(1));
        assert_eq!(
            waiting(&daemon),
            (id.clone(), shim),
            "not for a refused one"
        );
        assert_eq!(daemon.spawn(&["--", "sh", "-c", "exit 3"]), id);
        assert_eq!(daemon.cli(&["wait", &id]).status.code(), Some(3));
        daemon.ok(&["rm", &id]);
        gone(&daemon, &id);
    }
}

#[test]
fn killed_pooled_shim_is_replaced() {
    let daemon = Daemon::start();
    let (id, shim) = waiting(&daemon);
    kill_9(shim);
    let other = daemon.spawn(&["--", "sh", "-c", "exit 4"]);
    assert_ne!(other, id);
    assert_eq!(daemon.cli(&["wait", &other]).status.code(), Some(4));
    gone(&daemon, &id);
}

#[test]
fn pooled_shim_ends_with_its_daemon() {
    let mut daemon = Daemon::start();
    let (id, _) = waiting(&daemon);
    assert!(daemon.terminate());
    gone(&daemon, &id);
    daemon.launch();
    let (id, _) = waiting(&daemon);
    daemon.kill();
    eventually("its shim has gone", || {
        processes_with(&id).is_empty().then_some(())
    });
    daemon.launch();
    gone(&daemon, &id);
    assert_eq!(daemon.kept(), 0);
}
