//! Parses arbitrary bytes as output of an agent of every runtime. State and transcript must not depend on chunk
//! boundaries, and all texts must be bounded and without control characters.

#![no_main]

use colibri_glasspane::{
    AgentRuntime, AgentState, AgentView, Exit, Glasspane, Transcript, TranscriptFormatter,
};
use libfuzzer_sys::fuzz_target;

/// Maximum length of a text in a view, in bytes: 200 characters of at most 4 bytes.
const MAX_TEXT: usize = 4 * 200;

/// Checks the bounds of a view.
fn check_view(view: &AgentView) {
    for text in [&view.current_tool, &view.last_error].into_iter().flatten() {
        assert!(
            text.len() <= MAX_TEXT && !text.chars().any(char::is_control),
            "{text:?}"
        );
    }
    assert!(view.malformed_lines <= view.events);
    serde_json::to_string(view).expect("cannot serialize a view");
}

/// Returns the formatted transcript of output that arrives in chunks of this size.
fn format_transcript(runtime: AgentRuntime, bytes: &[u8], chunk_size: usize) -> String {
    let mut transcript = Transcript::new(runtime);
    let mut formatter = TranscriptFormatter::new(false);
    let mut text = String::new();
    for chunk in bytes.chunks(chunk_size) {
        for item in transcript.push_stdout(chunk) {
            text.push_str(&formatter.format(&item));
        }
    }
    text
}

fuzz_target!(|input: &[u8]| {
    let Some((first, bytes)) = input.split_first() else {
        return;
    };
    let chunk_size = usize::from(*first).max(1);
    for &runtime in AgentRuntime::ALL {
        let mut whole = Glasspane::new(runtime, 0);
        whole.push_output(&[], 1);
        whole.push_output(bytes, 1);
        let mut chunked = Glasspane::new(runtime, 0);
        chunked.push_output(&[], 1);
        for chunk in bytes.chunks(chunk_size) {
            chunked.push_output(chunk, 1);
            check_view(chunked.view());
        }
        assert_eq!(
            serde_json::to_string(whole.view()).expect("cannot serialize a view"),
            serde_json::to_string(chunked.view()).expect("cannot serialize a view")
        );
        let text = format_transcript(runtime, bytes, chunk_size);
        assert!(
            !text
                .chars()
                .any(|c| c.is_control() && c != '\n' && c != '\t'),
            "{text:?}"
        );
        let whole = format_transcript(runtime, bytes, bytes.len().max(1));
        assert_eq!(text, whole);
        chunked.set_stalled(chunk_size % 2 == 0, 2);
        chunked.tick(u64::MAX);
        chunked.record_exit(
            &Exit::new(None, None),
            Some(&String::from_utf8_lossy(bytes)),
            3,
        );
        check_view(chunked.view());
        assert_eq!(chunked.view().state, AgentState::Error);
        chunked.push_output(bytes, 4);
        assert_eq!(chunked.view().state, AgentState::Error, "the end is final");
    }
});
