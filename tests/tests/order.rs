//! The order of notifications: output in the order of its times, and a state after the line that caused it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use colibri_tests::{Daemon, Wire};
use serde_json::{Value, json};

/// Subscribes to an agent and returns all notifications up to its exit.
fn events_until_exit(wire: &mut Wire, id: &str, params: Value) -> Vec<Value> {
    let mut params = params;
    params["id"] = json!(id);
    params["from_offset"] = json!(0);
    let answer = wire.call("subscribe", params);
    assert!(answer["result"].is_object(), "{answer}");
    let mut events = Vec::new();
    loop {
        let event = wire.next_line().unwrap();
        let is_exit = event["method"] == "agent-exit";
        events.push(event);
        if is_exit {
            return events;
        }
    }
}

#[test]
fn both_outputs_arrive_in_order_of_their_times() {
    let daemon = Daemon::start();
    // The pauses exceed the interval within which a journal records one time for all lines.
    let script = "for i in 1 2 3 4; do echo out $i; sleep 0.05; echo err $i >&2; sleep 0.05; done";
    let id = daemon.spawn(&["--", "sh", "-c", script]);
    daemon.cli_ok(&["wait", &id]);
    for timed in [false, true] {
        let events = events_until_exit(&mut daemon.connect(), &id, json!({"timed": timed}));
        let outputs = events
            .iter()
            .filter(|event| event["method"] == "agent-output");
        let words: String = outputs
            .map(|event| event["params"]["data"].as_str().unwrap())
            .collect();
        let expected: String = (1..=4).map(|i| format!("out {i}\nerr {i}\n")).collect();
        assert_eq!(words, expected, "timed: {timed}");
    }
}

#[test]
fn state_follows_the_line_that_caused_it() {
    let daemon = Daemon::start();
    let mut wire = daemon.connect();
    let subscribed = wire.call("subscribe", json!({"lifecycle": true}));
    assert!(subscribed["result"].is_object());
    let start = r#"{"type":"agent_start"}"#;
    let tool = r#"{"type":"tool_execution_start","toolCallId":"1","toolName":"bash","args":{}}"#;
    let asks = r#"{"type":"extension_ui_request","id":"1","method":"confirm"}"#;
    let script =
        format!("echo '{start}'; echo '{tool}'; echo '{asks}'; echo later; sleep 0.3; exit 3");
    let id = daemon.spawn(&["--runtime", "pi", "--", "sh", "-c", &script]);
    let mut events = Vec::new();
    while events
        .last()
        .is_none_or(|event: &Value| event["method"] != "agent-exit")
    {
        let event = wire.next_line().unwrap();
        if event["params"]["id"] == json!(id) {
            events.push(event);
        }
    }
    let mut output = String::new();
    let mut states = Vec::new();
    for event in &events {
        let params = &event["params"];
        match event["method"].as_str().unwrap() {
            "agent-output" => output.push_str(params["data"].as_str().unwrap()),
            "agent-state" => states.push((params["state"].as_str().unwrap(), output.clone())),
            _ => {}
        }
    }
    let (_, before) = states
        .iter()
        .find(|(state, _)| *state == "blocked")
        .expect("no state blocked");
    assert!(before.ends_with(&format!("{asks}\n")), "{states:?}");
    let (state, before) = states.last().unwrap();
    assert_eq!(*state, "error");
    assert!(before.ends_with("later\n"), "{states:?}");
}
