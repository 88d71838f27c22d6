//! The state machines that parse an agent's output into its view and transcript.

use colibri_glasspane::{AgentRuntime, Glasspane, Transcript};

use super::Operation;

pub(crate) fn all() -> Vec<Operation> {
    let session = std::fs::read(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../crates/colibri-glasspane/tests/recorded/pi-json-tools.jsonl"
    ))
    .unwrap();
    let length = session.len();
    let mut session_pane = Glasspane::new(AgentRuntime::Pi, 0);
    let lines = session.clone();
    let state = move || {
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            session_pane.push_output(line, 1);
        }
        session_pane.view().events
    };
    let transcript = move || Transcript::new(AgentRuntime::Pi).push_stdout(&session);

    let mut update = br#"{"type":"message_update","assistantMessageEvent":{"type":"text_delta","delta":"so"},"message":{"role":"assistant","content":[{"type":"text","text":""#.to_vec();
    update.extend(std::iter::repeat_n(b'x', 4000));
    update.extend(b"\"}]}}\n");
    let update_length = update.len();
    let mut update_pane = Glasspane::new(AgentRuntime::Pi, 0);
    update_pane.push_output(b"{\"type\":\"agent_start\"}\n", 0);

    let mut generic_pane = Glasspane::new(AgentRuntime::Generic, 0);
    let mut now = 0;
    let activity = move || {
        now += 1;
        generic_pane.record_activity(now);
        generic_pane.deadline()
    };

    let mut malformed_line = vec![b'x'; (1 << 20) - 1];
    malformed_line.push(b'\n');
    let mut malformed_pane = Glasspane::new(AgentRuntime::Pi, 0);
    let malformed = move || {
        for chunk in malformed_line.chunks(65_536) {
            malformed_pane.push_output(chunk, 1);
        }
        malformed_pane.view().malformed_lines
    };
    vec![
        Operation::new("state of a session of 39 lines", state).with_bytes(length),
        Operation::new("transcript of a session of 39 lines", transcript).with_bytes(length),
        Operation::new("state of an update with 4 KB of text", move || {
            update_pane.push_output(&update, 1);
        })
        .with_bytes(update_length),
        Operation::new("a malformed line of 1 MiB", malformed).with_bytes(1 << 20),
        Operation::new("activity of a generic agent", activity),
    ]
}
