//! The client against a peer that answers what a script says, in its own order.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::PathBuf;

use colibri_client::{Client, ClientError, ErrorKind, Notification, SubscribeParams};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

async fn peer(dir: &tempfile::TempDir) -> (Client, BufReader<UnixStream>, UnixListener) {
    let path: PathBuf = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let client = Client::connect(&path).await.unwrap();
    let (socket, _) = listener.accept().await.unwrap();
    (client, BufReader::new(socket), listener)
}

async fn read_id(peer: &mut BufReader<UnixStream>) -> u64 {
    let mut line = String::new();
    peer.read_line(&mut line).await.unwrap();
    serde_json::from_str::<serde_json::Value>(&line).unwrap()["id"]
        .as_u64()
        .unwrap()
}

#[tokio::test]
async fn answers_find_their_callers_in_any_order() {
    let dir = tempfile::tempdir().unwrap();
    let (client, mut peer, _listener) = peer(&dir).await;
    let script = async {
        let first = read_id(&mut peer).await;
        let second = read_id(&mut peer).await;
        for (id, name) in [(second, "second"), (first, "first")] {
            let answer = format!(
                "{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{\"name\":\"{name}\",\"version\":\"1\",\"protocol\":1}}}}\n"
            );
            peer.write_all(answer.as_bytes()).await.unwrap();
        }
    };
    let (first, second, ()) = tokio::join!(client.version(), client.version(), script);
    assert_eq!(
        (first.unwrap().name.as_str(), second.unwrap().name.as_str()),
        ("first", "second")
    );
}

#[tokio::test]
async fn an_event_right_behind_the_answer_is_not_missed_and_the_end_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (client, calls, listener) = peer(&dir).await;
    let script = async {
        let mut peer = BufReader::new(listener.accept().await.unwrap().0);
        let id = read_id(&mut peer).await;
        let both = format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{\"subscription\":4}}}}\n{}\n",
            r#"{"jsonrpc":"2.0","method":"agent-output","params":{"subscription":4,"id":"a","stream":"stdout","offset":0,"data":"aGk=","encoding":"base64"}}"#
        );
        peer.write_all(both.as_bytes()).await.unwrap();
        peer
    };
    let (events, peer) = tokio::join!(client.subscribe(SubscribeParams::default()), script);
    let mut events = events.unwrap();
    let Some(Notification::AgentOutput(output)) = events.next().await else {
        panic!("no output")
    };
    assert_eq!(output.data.into_bytes().unwrap(), b"hi");
    drop(peer);
    assert_eq!(events.next().await, None);
    drop(calls);
    assert!(matches!(client.version().await, Err(ClientError::Closed)));
}

#[tokio::test]
async fn a_subscription_ends_when_its_events_are_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let (client, _calls, listener) = peer(&dir).await;
    let script = async {
        let mut peer = BufReader::new(listener.accept().await.unwrap().0);
        let id = read_id(&mut peer).await;
        let answer =
            format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{\"subscription\":0}}}}\n");
        peer.write_all(answer.as_bytes()).await.unwrap();
        peer
    };
    let (events, mut peer) = tokio::join!(client.subscribe(SubscribeParams::default()), script);
    drop(events.unwrap());
    assert_eq!(peer.read_line(&mut String::new()).await.unwrap(), 0);
}

#[tokio::test]
async fn errors_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let absent = Client::connect(&dir.path().join("absent")).await;
    assert!(matches!(absent, Err(ClientError::NoDaemon { .. })));
    let (client, mut peer, _listener) = peer(&dir).await;
    let script = async {
        let id = read_id(&mut peer).await;
        let refusal = format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":{id},\"error\":{{\"code\":-32000,\"message\":\"no\",\"data\":{{\"kind\":\"unknown-agent\"}}}}}}\n"
        );
        peer.write_all(refusal.as_bytes()).await.unwrap();
    };
    let (refused, ()) = tokio::join!(client.get_agent("x"), script);
    assert!(
        matches!(refused, Err(ClientError::Rpc(error)) if error.data.kind == ErrorKind::UnknownAgent)
    );
}
