//! Slow, stuck and dead clients delay nothing else, and their memory is bounded.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use colibri_client::{Client, Notification, SubscribeParams};
use colibri_tests::follower::Follower;
use colibri_tests::lines::Difference;
use colibri_tests::{Daemon, SOON, wait_until};
use serde_json::json;

/// Maximum memory of one connection in the daemon, in KiB.
const MAX_CONNECTION_KIB: u64 = 2 << 10;

/// Returns a value of the daemon's /proc/PID/status (proc_pid_status(5)), in KiB.
fn memory_kib(daemon: &Daemon, key: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn fifty_subscribers_do_not_slow_the_agent_or_each_other() {
    let daemon = Daemon::start();
    let mut random = fastrand::Rng::with_seed(5);
    let mut bytes = vec![0; 6 << 20];
    random.fill(&mut bytes);
    fs::write(daemon.path("bytes"), &bytes).unwrap();
    let id = daemon.spawn(&[
        "--",
        "sh",
        "-c",
        "read x; cat \"$0\"; exit 8",
        daemon.path("bytes").to_str().unwrap(),
    ]);
    daemon.cli_ok(&["ps"]);
    let initial = memory_kib(&daemon, "VmRSS");
    let subscribe = || {
        let mut stream = UnixStream::connect(daemon.socket()).unwrap();
        let params = json!({"id": id, "from_offset": 0});
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": "subscribe", "params": params});
        stream.write_all(format!("{request}\n").as_bytes()).unwrap();
        stream
    };
    let stuck: Vec<UnixStream> = (0..25).map(|_| subscribe()).collect();
    let dying: Vec<UnixStream> = (0..10).map(|_| subscribe()).collect();
    let reading: Vec<Follower> = (0..10)
        .map(|_| Follower::over_wire(daemon.socket(), id.clone()))
        .collect();
    let slow: Vec<Follower> = (0..5)
        .map(|_| {
            Follower::over_wire_with_pause(daemon.socket(), id.clone(), Duration::from_millis(20))
        })
        .collect();
    daemon
        .connect()
        .call("send-input", json!({"id": id, "data": "go\n"}));
    drop(dying);
    // The agent ends while the stuck subscribers are connected and have read nothing.
    assert_eq!(daemon.wait(&id), Some(8));
    for follower in reading.into_iter().chain(slow) {
        let followed = follower.finish();
        assert_eq!(followed.error, None);
        assert_eq!(followed.offset_difference, Difference::default());
        assert!(
            followed.received[0] == bytes,
            "{} bytes",
            followed.received[0].len()
        );
    }
    let peak = memory_kib(&daemon, "VmHWM");
    let limit = initial + 50 * MAX_CONNECTION_KIB;
    assert!(
        peak < limit,
        "peak {peak} KiB, initially {initial} KiB, limit {limit} KiB"
    );
    // A stuck subscriber that starts to read receives everything.
    let mut stuck = stuck.into_iter();
    let subscriber = BufReader::new(stuck.next().unwrap());
    let mut offset = 0;
    for line in subscriber.lines() {
        let event: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        match event["method"].as_str() {
            Some("agent-output") => {
                let event = serde_json::from_value(event).unwrap();
                let Notification::AgentOutput(event) = event else {
                    panic!("no agent-output event")
                };
                let received = event.data.into_bytes().unwrap();
                assert_eq!(event.offset, offset as u64, "no gap and no repeat");
                assert!(received == bytes[offset..offset + received.len()]);
                offset += received.len();
            }
            Some("agent-exit") => break,
            _ => {}
        }
    }
    assert_eq!(offset, bytes.len());
    drop(stuck);
    wait_until("ended connections are closed", || daemon.descriptors() < 25);
}

#[tokio::test]
async fn unread_events_delay_no_calls_or_other_subscriptions() {
    let daemon = Daemon::start();
    fs::write(daemon.path("bytes"), vec![b'x'; 20 << 20]).unwrap();
    let path = daemon.path("bytes");
    let id = daemon.spawn(&[
        "--",
        "sh",
        "-c",
        "cat \"$0\"; cat \"$0\" >&2",
        path.to_str().unwrap(),
    ]);
    assert_eq!(daemon.wait(&id), Some(0));
    let received = tokio::time::timeout(SOON, async {
        let client = Client::connect(&daemon.socket()).await.unwrap();
        let params = SubscribeParams {
            id: Some(id),
            from_offset: Some(0),
            ..SubscribeParams::default()
        };
        let unread = client.subscribe(params.clone()).await.unwrap();
        // More calls than the event queue has entries: answers must not queue after events.
        for _ in 0..1000 {
            assert_eq!(client.list_agents().await.unwrap().len(), 1);
        }
        let mut subscription = client.subscribe(params).await.unwrap();
        let mut bytes = 0;
        while let Some(event) = subscription.next().await {
            match event {
                Notification::AgentOutput(output) => {
                    bytes += output.data.into_bytes().unwrap().len()
                }
                Notification::AgentExit(_) => break,
                _ => {}
            }
        }
        drop(unread);
        bytes
    });
    assert_eq!(received.await.expect("a timeout"), 40 << 20);
}
