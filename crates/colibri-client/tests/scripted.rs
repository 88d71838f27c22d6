//! The client against a server that sends scripted responses in any order.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::PathBuf;

use colibri_client::{Client, ClientError, ErrorKind, Notification, SubscribeParams};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

async fn server(dir: &tempfile::TempDir) -> (Client, BufReader<UnixStream>, UnixListener) {
    let path: PathBuf = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let client = Client::connect(&path).await.unwrap();
    let (socket, _) = listener.accept().await.unwrap();
    (client, BufReader::new(socket), listener)
}

async fn read_id(server: &mut BufReader<UnixStream>) -> u64 {
    let mut line = String::new();
    server.read_line(&mut line).await.unwrap();
    serde_json::from_str::<serde_json::Value>(&line).unwrap()["id"]
        .as_u64()
        .unwrap()
}

#[tokio::test]
async fn out_of_order_responses_reach_their_callers() {
    let dir = tempfile::tempdir().unwrap();
    let (client, mut server, _listener) = server(&dir).await;
    let script = async {
        let first = read_id(&mut server).await;
        let second = read_id(&mut server).await;
        for (id, name) in [(second, "second"), (first, "first")] {
            let response = format!(
                "{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{\"name\":\"{name}\",\"version\":\"1\",\"protocol\":1}}}}\n"
            );
            server.write_all(response.as_bytes()).await.unwrap();
        }
    };
    let (first, second, ()) = tokio::join!(client.version(), client.version(), script);
    assert_eq!(
        (first.unwrap().name.as_str(), second.unwrap().name.as_str()),
        ("first", "second")
    );
}

#[tokio::test]
async fn event_right_after_the_response_is_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let (client, calls, listener) = server(&dir).await;
    let script = async {
        let mut server = BufReader::new(listener.accept().await.unwrap().0);
        let id = read_id(&mut server).await;
        let frames = format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{\"subscription\":4}}}}\n{}\n",
            r#"{"jsonrpc":"2.0","method":"agent-output","params":{"subscription":4,"id":"a","stream":"stdout","offset":0,"data":"aGk=","encoding":"base64"}}"#
        );
        server.write_all(frames.as_bytes()).await.unwrap();
        server
    };
    let (events, server) = tokio::join!(client.subscribe(SubscribeParams::default()), script);
    let mut events = events.unwrap();
    let Some(Notification::AgentOutput(output)) = events.next().await else {
        panic!("no output")
    };
    assert_eq!(output.data.into_bytes().unwrap(), b"hi");
    drop(server);
    assert_eq!(events.next().await, None);
    drop(calls);
    assert!(matches!(client.version().await, Err(ClientError::Closed)));
}

#[tokio::test]
async fn dropped_events_close_the_connection() {
    let dir = tempfile::tempdir().unwrap();
    let (client, _calls, listener) = server(&dir).await;
    let script = async {
        let mut server = BufReader::new(listener.accept().await.unwrap().0);
        let id = read_id(&mut server).await;
        let response =
            format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{\"subscription\":0}}}}\n");
        server.write_all(response.as_bytes()).await.unwrap();
        server
    };
    let (events, mut server) = tokio::join!(client.subscribe(SubscribeParams::default()), script);
    drop(events.unwrap());
    assert_eq!(server.read_line(&mut String::new()).await.unwrap(), 0);
}

#[tokio::test]
async fn error_kinds_are_distinguished() {
    let dir = tempfile::tempdir().unwrap();
    let absent = Client::connect(&dir.path().join("absent")).await;
    assert!(matches!(absent, Err(ClientError::NoDaemon { .. })));
    let (client, mut server, _listener) = server(&dir).await;
    let script = async {
        let id = read_id(&mut server).await;
        let refusal = format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":{id},\"error\":{{\"code\":-32000,\"message\":\"no\",\"data\":{{\"kind\":\"unknown-agent\"}}}}}}\n"
        );
        server.write_all(refusal.as_bytes()).await.unwrap();
    };
    let (refused, ()) = tokio::join!(client.get_agent("x"), script);
    assert!(
        matches!(refused, Err(ClientError::Rpc(error)) if error.data.kind == ErrorKind::UnknownAgent)
    );
}
