//! What real agents wrote, line by line, and what is shown of them. Recorded from pi 0.87.1 with a model whose
//! answers were scripted; long texts are cut.

#![allow(clippy::unwrap_used)]

use std::fmt::Write;

use colibri_glasspane::{AgentRuntime, Glasspane};

#[test]
fn recorded_sessions_of_pi() {
    for name in [
        "pi-json-tools",
        "pi-json-error",
        "pi-rpc-prompt-steer-abort",
    ] {
        let path = format!("{}/tests/recorded/{name}.jsonl", env!("CARGO_MANIFEST_DIR"));
        let mut pane = Glasspane::new(AgentRuntime::Pi, 0);
        let mut shown = String::new();
        let mut before = String::new();
        for line in std::fs::read_to_string(path).unwrap().lines() {
            pane.output(format!("{line}\n").as_bytes(), 1);
            let view = pane.view();
            let after = format!(
                "{:<8} tool {:<5} turns {} tokens {}+{} error {}",
                view.state,
                view.current_tool.as_deref().unwrap_or("-"),
                view.turns,
                view.input_tokens,
                view.output_tokens,
                view.last_error.as_deref().unwrap_or("-")
            );
            let event: serde_json::Value = serde_json::from_str(line).unwrap();
            if after != before {
                writeln!(shown, "{:<22} {after}", event["type"].as_str().unwrap()).unwrap();
            }
            before = after;
        }
        assert_eq!(pane.view().malformed_lines, 0, "{name}");
        insta::assert_snapshot!(name, shown);
    }
}
