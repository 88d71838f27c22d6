//! docs/protocol.md: every frame parses, and every method has an example.

#![allow(clippy::unwrap_used, clippy::panic)]

use colibri_proto::{Call, Request, ServerMessage};

#[test]
fn documented_frames_are_valid() {
    let page = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../docs/protocol.md"
    ))
    .unwrap();
    let mut methods = Vec::new();
    let mut answers = 0;
    for line in page.lines().filter(|line| line.starts_with("{\"jsonrpc\"")) {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        if value.get("method").is_some() && value.get("id").is_some() {
            let call = Request::read(line.as_bytes()).unwrap().call();
            methods.push(value["method"].as_str().unwrap().to_owned());
            assert!(call.is_ok(), "{line}: {call:?}");
        } else {
            let message = ServerMessage::parse(line.as_bytes());
            assert!(message.is_ok(), "{line}: {message:?}");
            let again = match message.unwrap() {
                ServerMessage::Response(response) => serde_json::to_value(response).unwrap(),
                ServerMessage::Notification(notification) => {
                    serde_json::from_slice(&notification.encode().unwrap()).unwrap()
                }
            };
            assert_eq!(again, value, "the documentation has no unknown field");
            answers += 1;
        }
    }
    methods.sort();
    methods.dedup();
    let mut all = Call::METHODS.to_vec();
    all.sort_unstable();
    assert_eq!(methods, all);
    assert!(answers >= 8);
}
