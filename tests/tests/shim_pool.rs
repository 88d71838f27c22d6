//! The pre-started shim for the next agent.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use colibri_tests::{Daemon, eventually, kill_9, processes_with};

fn pooled(daemon: &Daemon) -> (String, i32) {
    eventually("a shim is in the pool", || daemon.pooled_shim())
}

fn assert_removed(daemon: &Daemon, id: &str) {
    eventually("no process or directory is left", || {
        let directory = daemon.agent_dir(id);
        (!directory.exists() && processes_with(id).is_empty()).then_some(())
    });
}

#[test]
fn spawn_takes_the_pooled_shim_and_refills_the_pool() {
    let daemon = Daemon::start();
    for _ in 0..3 {
        let (id, shim) = pooled(&daemon);
        assert!(!daemon.ok(&["ps"]).contains(&id), "it is not listed");
        let refused = daemon.cli(&["spawn", "--", "no-such-program"]);
        assert_eq!(refused.status.code(), Some(1));
        assert_eq!(
            pooled(&daemon),
            (id.clone(), shim),
            "a refused spawn does not use it"
        );
        assert_eq!(daemon.spawn(&["--", "sh", "-c", "exit 3"]), id);
        assert_eq!(daemon.cli(&["wait", &id]).status.code(), Some(3));
        daemon.ok(&["rm", &id]);
        assert_removed(&daemon, &id);
    }
}

#[test]
fn killed_pooled_shim_is_replaced() {
    let daemon = Daemon::start();
    let (id, shim) = pooled(&daemon);
    kill_9(shim);
    let next = daemon.spawn(&["--", "sh", "-c", "exit 4"]);
    assert_ne!(next, id);
    assert_eq!(daemon.cli(&["wait", &next]).status.code(), Some(4));
    assert_removed(&daemon, &id);
}

#[test]
fn pooled_shim_ends_with_its_daemon() {
    let mut daemon = Daemon::start();
    let (id, _) = pooled(&daemon);
    assert!(daemon.terminate());
    assert_removed(&daemon, &id);
    daemon.launch();
    let (id, _) = pooled(&daemon);
    daemon.kill();
    eventually("its shim has ended", || {
        processes_with(&id).is_empty().then_some(())
    });
    daemon.launch();
    assert_removed(&daemon, &id);
    assert_eq!(daemon.agent_count(), 0);
}
