//! The index of running agents.

use super::*;
use colibri_config::{PartialSettings, Registries, Settings};
use colibri_prepare::{Cgroups, HostEnv, Preparer};
use colibri_shim::layout;
use colibri_shim::record::{self, Durability};
use serde_json::json;
use std::fs::File;
use std::path::Path;

/// A spawner with an empty state directory.
pub(crate) fn spawner_in(dir: &Path) -> Spawner {
    let partial = PartialSettings {
        state_dir: Some(dir.to_owned()),
        ..PartialSettings::default()
    };
    let settings = Settings::resolve(&partial, |_| None, &Registries::default()).unwrap();
    let socket = dir.join("run/colibri.sock");
    let preparer = Preparer {
        private_directories: settings.private_directories(&socket),
        private_files: Vec::new(),
        known_daemons: None,
        engine: settings.engine,
        backend: settings.backend,
        host: HostEnv::from_variables([]),
        cgroups: Cgroups::Unavailable("not claimed".into()),
        soft_open_files: None,
        adapter: settings.adapter,
    };
    let spawner = Spawner::new(preparer, settings.state_dir, settings.shim);
    spawner.state.open().unwrap();
    spawner
}

pub(crate) fn spec(id: &str) -> serde_json::Value {
    json!({"id": id, "program": "x", "engine": "bubblewrap", "privilege": "none", "created_at_ns": 0})
}

pub(crate) fn exit() -> serde_json::Value {
    json!({"exited_at_ns": 1, "exit": {"code": 0}, "error": null,
        "stdout_bytes": 0, "stderr_bytes": 0, "run": 1})
}

#[tokio::test]
async fn ended_agents_are_not_in_the_index_of_running_agents() {
    let dir = tempfile::tempdir().unwrap();
    let spawner = spawner_in(dir.path());
    let create_agent = |id: &str| {
        let directory = spawner.state.agent(&id.parse().unwrap());
        std::fs::create_dir(&directory).unwrap();
        record::replace(
            &directory.join(layout::SPEC),
            &spec(id),
            Durability::Process,
        )
        .unwrap();
        directory
    };
    // One agent whose shim seems to run, because its log is locked, and two that have ended.
    let running = create_agent("running123");
    let log = File::create(running.join(layout::LOG)).unwrap();
    log.try_lock().unwrap();
    let shim = json!({"shim_pid": 1, "agent_pid": 1, "started_at_ns": 0});
    record::replace(&running.join(layout::SHIM), &shim, Durability::Process).unwrap();
    for id in ["ended12345", "ended67890"] {
        record::replace(
            &create_agent(id).join(layout::EXIT),
            &exit(),
            Durability::Process,
        )
        .unwrap();
    }
    let registry = Registry::adopt(spawner.clone(), Observers::default())
        .await
        .unwrap();
    assert_eq!(
        (registry.list_running().len(), registry.ended().len()),
        (1, 2)
    );
    let indexed = || registry.agents.read().running.len();
    let listed = |running| {
        let all = registry.list(None, running, usize::MAX);
        let ids = all.iter().map(|entry| entry.spec.id.to_string());
        ids.collect::<Vec<_>>()
    };
    assert_eq!(indexed(), 1);
    assert_eq!(listed(true), ["running123"]);
    assert_eq!(listed(false), ["ended12345", "ended67890", "running123"]);
    assert_eq!(registry.list(None, false, 2).len(), 2);
    record::replace(&running.join(layout::EXIT), &exit(), Durability::Process).unwrap();
    drop(log);
    let entry = registry.get(&"running123".parse().unwrap()).unwrap();
    let mut latest = entry.latest.subscribe();
    latest
        .wait_for(|latest| latest.exit.is_some())
        .await
        .unwrap();
    assert_eq!(listed(true), [""; 0], "before the task of the agent ends");
    let index_is_empty = async {
        while indexed() > 0 {
            tokio::task::yield_now().await;
        }
    };
    let timeout = std::time::Duration::from_secs(20);
    assert!(tokio::time::timeout(timeout, index_is_empty).await.is_ok());
    assert_eq!(registry.list_running().len(), 0);
    assert_eq!(listed(false).len(), 3);
}
