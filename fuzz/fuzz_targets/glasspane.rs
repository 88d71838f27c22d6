//! Arbitrary bytes as an agent's output, for each runtime: a state and a transcript come out, however the bytes
//! are cut, and nothing that is shown can move a terminal's cursor or grow without bound.

#![no_main]

use colibri_glasspane::{AgentRuntime, AgentState, Exit, Glasspane, Painter, Transcript, View};
use libfuzzer_sys::fuzz_target;

const MOST: usize = 4 * 200;

fn shown(view: &View) {
    for text in [&view.current_tool, &view.last_error].into_iter().flatten() {
        assert!(
            text.len() <= MOST && !text.chars().any(char::is_control),
            "{text:?}"
        );
    }
    assert!(view.malformed_lines <= view.events);
    serde_json::to_string(view).expect("a view can be written");
}

fn painted(runtime: AgentRuntime, bytes: &[u8], cut: usize) -> String {
    let mut transcript = Transcript::new(runtime);
    let mut painter = Painter::new(false);
    let mut text = String::new();
    for piece in bytes.chunks(cut) {
        for item in transcript.stdout(piece) {
            text.push_str(&painter.paint(&item));
        }
    }
    text
}

fuzz_target!(|input: &[u8]| {
    let Some((cut, bytes)) = input.split_first() else {
        return;
    };
    let cut = usize::from(*cut).max(1);
    for runtime in [AgentRuntime::Generic, AgentRuntime::Pi, AgentRuntime::Zot] {
        let mut whole = Glasspane::new(runtime, 0);
        whole.output(&[], 1);
        whole.output(bytes, 1);
        let mut pieces = Glasspane::new(runtime, 0);
        pieces.output(&[], 1);
        for piece in bytes.chunks(cut) {
            pieces.output(piece, 1);
            shown(pieces.view());
        }
        assert_eq!(
            serde_json::to_string(whole.view()).expect("a view"),
            serde_json::to_string(pieces.view()).expect("a view")
        );
        let text = painted(runtime, bytes, cut);
        assert!(
            !text
                .chars()
                .any(|c| c.is_control() && c != '\n' && c != '\t'),
            "{text:?}"
        );
        let whole = painted(runtime, bytes, bytes.len().max(1));
        assert_eq!(text, whole);
        pieces.stalled(cut % 2 == 0, 2);
        pieces.tick(u64::MAX);
        pieces.exited(
            &Exit::from_status(None),
            Some(&String::from_utf8_lossy(bytes)),
            3,
        );
        shown(pieces.view());
        assert_eq!(pieces.view().state, AgentState::Error);
        pieces.output(bytes, 4);
        assert_eq!(pieces.view().state, AgentState::Error, "an end is final");
    }
});
