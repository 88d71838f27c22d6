//! State machines that turn an agent's output into its view and transcript.

use colibri_glasspane::{AgentRuntime, Glasspane, Transcript};

use super::Operation;

pub(crate) fn all() -> Vec<Operation> {
    let session = std::fs::read(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../crates/colibri-glasspane/tests/recorded/pi-json-tools.jsonl"
    ))
    .unwrap();
    let length = session.len();
    let mut pane = Glasspane::new(AgentRuntime::Pi, 0);
    let written = session.clone();
    let state = move || {
        for line in written.split_inclusive(|byte| *byte == b'\n') {
            pane.push_output(line, 1);
        }
        pane.view().events
    };
    let transcript = move || Transcript::new(AgentRuntime::Pi).push_stdout(&session);

    let mut update = br#"{"type":"message_update","assistantMessageEvent":{"type":"text_delta","delta":"so"},"message":{"role":"assistant","content":[{"type":"text","text":""#.to_vec();
    update.extend(std::iter::repeat_n(b'x', 4000));
    update.extend(b"\"}]}}\n");
    let update_length = update.len();
    let mut updated = Glasspane::new(AgentRuntime::Pi, 0);

    let mut generic = Glasspane::new(AgentRuntime::Generic, 0);
    let mut now = 0;
    let activity = move || {
        now += 1;
        generic.record_activity(now);
        generic.deadline()
    };

    let mut malformed = vec![b'x'; (1 << 20) - 1];
    malformed.push(b'\n');
    let mut confused = Glasspane::new(AgentRuntime::Pi, 0);
    let nonsense = move || {
        for piece in malformed.chunks(65_536) {
            confused.push_output(piece, 1);
        }
        confused.view().malformed_lines
    };
    vec![
        Operation::new("state of a session of 39 lines", state).over(length),
        Operation::new("transcript of a session of 39 lines", transcript).over(length),
        Operation::new("state of an update with 4 KB of text", move || {
            updated.push_output(&update, 1);
        })
        .over(update_length),
        Operation::new("a malformed line of 1 MiB", nonsense).over(1 << 20),
        Operation::new("activity of a generic agent", activity),
    ]
}
