//! The pool of one shim, which the daemon starts before the next spawn.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use colibri_tests::{Daemon, PooledShim, eventually, kill_9, processes_with, wait_until};

fn wait_for_pooled_shim(daemon: &Daemon) -> PooledShim {
    eventually("a shim is in the pool", || daemon.pooled_shim())
}

fn assert_removed(daemon: &Daemon, id: &str) {
    wait_until("no process or directory is left", || {
        let directory = daemon.agent_dir(id);
        !directory.exists() && processes_with(id).is_empty()
    });
}

#[test]
fn spawn_takes_the_pooled_shim_and_refills_the_pool() {
    let daemon = Daemon::start();
    for _ in 0..3 {
        let shim = wait_for_pooled_shim(&daemon);
        let id = shim.id.clone();
        assert!(
            !daemon.cli_ok(&["ps"]).contains(&id),
            "the pooled shim is listed"
        );
        let refused = daemon.cli(&["spawn", "--", "no-such-program"]);
        assert_eq!(refused.status.code(), Some(1));
        assert_eq!(
            wait_for_pooled_shim(&daemon),
            shim,
            "a refused spawn does not use the shim"
        );
        assert_eq!(daemon.spawn(&["--", "sh", "-c", "exit 3"]), id);
        assert_eq!(daemon.wait(&id), Some(3));
        daemon.cli_ok(&["rm", &id]);
        assert_removed(&daemon, &id);
    }
}

#[test]
fn killed_pooled_shim_is_replaced() {
    let daemon = Daemon::start();
    let PooledShim { id, pid } = wait_for_pooled_shim(&daemon);
    kill_9(pid);
    wait_until("the shim has ended", || processes_with(&id).is_empty());
    let next = daemon.spawn(&["--", "sh", "-c", "exit 4"]);
    assert_ne!(next, id);
    assert_eq!(daemon.wait(&next), Some(4));
    assert_removed(&daemon, &id);
}

#[test]
fn pooled_shim_ends_with_its_daemon() {
    let mut daemon = Daemon::start();
    let id = wait_for_pooled_shim(&daemon).id;
    assert!(daemon.terminate());
    assert_removed(&daemon, &id);
    daemon.launch();
    let id = wait_for_pooled_shim(&daemon).id;
    daemon.kill();
    wait_until("the shim has ended", || processes_with(&id).is_empty());
    daemon.launch();
    assert_removed(&daemon, &id);
    assert_eq!(daemon.agent_count(), 0);
}
