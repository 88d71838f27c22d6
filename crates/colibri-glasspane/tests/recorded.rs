//! Snapshots of states and transcripts for recorded sessions. pi: recorded from pi 0.87.1 with a scripted model, long
//! texts shortened. zot: written from the examples in its docs/rpc.md (protocol version 1), not recorded.

#![allow(clippy::unwrap_used)]

use std::fmt::Write;

use colibri_glasspane::{AgentRuntime, Glasspane, Transcript, TranscriptFormatter};

const SESSIONS: &[(&str, AgentRuntime)] = &[
    ("pi-json-tools", AgentRuntime::Pi),
    ("pi-json-error", AgentRuntime::Pi),
    ("pi-json-parallel-retry", AgentRuntime::Pi),
    ("pi-rpc-prompt-steer-abort", AgentRuntime::Pi),
    ("pi-rpc-questions", AgentRuntime::Pi),
    ("pi-rpc-queue-abort", AgentRuntime::Pi),
    ("zot-from-its-docs", AgentRuntime::Zot),
];

fn session(name: &str) -> String {
    let path = format!("{}/tests/recorded/{name}.jsonl", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn recorded_sessions_have_expected_states() {
    for (name, runtime) in SESSIONS {
        let mut pane = Glasspane::new(*runtime, 0);
        let mut shown = String::new();
        let mut before = String::new();
        // Not lines(): pi ends records with LF only.
        for line in session(name).split_terminator('\n') {
            pane.push_output(format!("{line}\n").as_bytes(), 1);
            let view = pane.view();
            let activity = view.activity.map(|activity| activity.to_string());
            let after = format!(
                "{:<8} {:<21} tool {:<5} queued {} turns {} tokens {}+{}+{} ${:.4} error {}",
                view.state,
                activity.as_deref().unwrap_or("-"),
                view.current_tool.as_deref().unwrap_or("-"),
                view.queued,
                view.turns,
                view.input_tokens,
                view.cached_tokens,
                view.output_tokens,
                view.cost_usd,
                view.last_error.as_deref().unwrap_or("-")
            );
            let event: serde_json::Value = serde_json::from_str(line).unwrap();
            if after != before {
                writeln!(shown, "{:<22} {after}", event["type"].as_str().unwrap()).unwrap();
            }
            before = after;
        }
        assert_eq!(pane.view().malformed_lines, 0, "{name}");
        insta::assert_snapshot!(*name, shown);
    }
}

#[test]
fn recorded_sessions_have_expected_transcripts() {
    for (name, runtime) in SESSIONS {
        for colour in [false, true] {
            let mut transcript = Transcript::new(*runtime);
            let mut formatter = TranscriptFormatter::new(colour);
            let mut shown = String::new();
            for item in transcript.push_stdout(session(name).as_bytes()) {
                shown.push_str(&formatter.format(&item));
            }
            shown.push_str(formatter.end_line());
            if !colour {
                insta::assert_snapshot!(format!("{name}-transcript"), shown);
            } else if *name == "pi-json-parallel-retry" {
                insta::assert_snapshot!(
                    format!("{name}-colours"),
                    shown.escape_debug().to_string().replace("\\n", "\n")
                );
            }
        }
    }
}
