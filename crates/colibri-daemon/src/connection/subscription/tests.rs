use super::output::READ_RETRY_DELAY;
use super::*;
use crate::registry::tests::{exit, spawner_in, spec};
use crate::times::now_ms;
use colibri_glasspane::{AgentRuntime, Glasspane};
use colibri_journal::{JournalOptions, JournalWriter};
use colibri_shim::control::ShimStatus;
use colibri_shim::record::ExitRecord;
use colibri_spawner::AgentSpec;
use colibri_types::ExitStatus;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

fn subscriber(params: SubscribeParams, frames: FrameQueue) -> Subscriber {
    Subscriber {
        number: 1,
        agent: None,
        params,
        frames,
        observers: Observers::default(),
    }
}

async fn next(queue: &mut mpsc::Receiver<Vec<u8>>) -> Value {
    let frame = tokio::time::timeout(Duration::from_secs(20), queue.recv()).await;
    serde_json::from_slice(&frame.unwrap().unwrap()).unwrap()
}

#[tokio::test]
async fn exit_event_waits_for_unreadable_output() {
    let dir = tempfile::tempdir().unwrap();
    let journal = dir.path().join("stdout");
    let mut writer = JournalWriter::open(&journal, JournalOptions::default()).unwrap();
    writer.append(b"last line", SystemTime::now()).unwrap();
    let log = journal.join("00000000000000000000.log");
    let aside = dir.path().join("aside");
    std::fs::rename(&log, &aside).unwrap();
    // The journal does not follow symbolic links: each read fails.
    std::os::unix::fs::symlink(&aside, &log).unwrap();
    let exit = ExitRecord {
        exit: Some(ExitStatus::Code(0)),
        reason: None,
        error: None,
        exited_at_ns: 0,
        stdout_bytes: 9,
        stderr_bytes: 0,
        run: 1,
        network: None,
        terminated: false,
    };
    let pane = Glasspane::new(AgentRuntime::Generic, now_ms());
    let snapshot = AgentSnapshot::new(&pane, &ShimStatus::default(), Some(exit));
    let agent = Arc::new(RegisteredAgent {
        spec: Arc::new(serde_json::from_value(spec("k3x9abcdef")).unwrap()),
        directory: dir.path().to_owned(),
        agent: None,
        latest: tokio::sync::watch::channel(snapshot).0,
        adopted: true,
        number: 0,
        hook_memory: Default::default(),
        subscribers: Default::default(),
        terminal: None,
    });
    let params = SubscribeParams {
        id: Some("k3x9abcdef".to_owned()),
        from_offset: Some(0),
        ..SubscribeParams::default()
    };
    let (frames, mut queue) = mpsc::channel(8);
    let task = tokio::spawn(follow(agent, subscriber(params, frames), None));
    assert_eq!(next(&mut queue).await["method"], "agent-state");
    let early = tokio::time::timeout(READ_RETRY_DELAY * 2, queue.recv()).await;
    assert!(early.is_err(), "{early:?}");
    std::fs::rename(&aside, &log).unwrap();
    assert_eq!(next(&mut queue).await["params"]["data"], "last line");
    assert_eq!(next(&mut queue).await["method"], "agent-exit");
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn lagging_subscriber_gets_or_counts_every_agent() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::adopt(spawner_in(dir.path()), Observers::default())
        .await
        .unwrap();
    let add = |number: u32| {
        let spec = spec(&format!("agent{number:05}"));
        let spec: AgentSpec = serde_json::from_value(spec).unwrap();
        std::fs::create_dir(registry.spawner().state.agent(&spec.id)).unwrap();
        let exit = serde_json::from_value(exit()).unwrap();
        registry.add_ended(Arc::new(spec), exit, None);
    };
    add(0);
    let params = SubscribeParams {
        stream: Some(StreamChoice::None),
        lifecycle: true,
        ..SubscribeParams::default()
    };
    let (frames, mut queue) = mpsc::channel(2);
    tokio::spawn(follow_all(registry.clone(), subscriber(params, frames)));
    tokio::task::yield_now().await;
    // More changes than a subscriber may lag behind; the first agents have already been removed.
    (1..=300).for_each(add);
    for number in 1..=10 {
        let id = format!("agent{number:05}").parse().unwrap();
        registry.forget(&id);
    }
    let mut events: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let (mut exits, mut missed) = (0, 0);
    while exits + missed < 300 {
        let event = next(&mut queue).await;
        let params = &event["params"];
        missed += params["agents"].as_u64().unwrap_or(0);
        if let Some(id) = params["id"].as_str() {
            let method = event["method"].as_str().unwrap().to_owned();
            exits += u64::from(method == "agent-exit");
            events.entry(id.to_owned()).or_default().push(method);
        }
    }
    assert_eq!((exits, missed), (290, 10));
    assert!(
        !events.contains_key("agent00000"),
        "older than the subscription"
    );
    for (id, methods) in events {
        assert_eq!(
            methods,
            ["agent-spawned", "agent-state", "agent-exit"],
            "{id}"
        );
    }
}
