//! Snapshots of states and transcripts for sessions that were recorded from the real agents with a scripted model. Long
//! texts and lists are shortened. The first part of a file's name is the runtime, except that sessions of the Agent Client
//! Protocol contain `-acp-`. pi-json-tools, pi-json-parallel-retry and pi-rpc-questions are from pi 0.87.1.

#![allow(clippy::unwrap_used)]

use std::fmt::Write;

use colibri_glasspane::{
    AgentRuntime, AgentState, Exit, ExitStatus, Glasspane, Transcript, TranscriptFormatter,
};

struct Session {
    name: String,
    runtime: AgentRuntime,
    output: String,
}

fn sessions() -> Vec<Session> {
    let directory = format!("{}/tests/recorded", env!("CARGO_MANIFEST_DIR"));
    let entries = std::fs::read_dir(directory).unwrap();
    let mut sessions: Vec<Session> = entries
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let runtime = match name.contains("-acp-") {
                true => AgentRuntime::Acp,
                false => name.split('-').next().unwrap().parse().unwrap(),
            };
            Session {
                name,
                runtime,
                output: std::fs::read_to_string(&path).unwrap(),
            }
        })
        .collect();
    sessions.sort_by(|a, b| a.name.cmp(&b.name));
    sessions
}

/// Returns the lines. Not lines(): agents end records with LF only.
fn lines(output: &str) -> impl Iterator<Item = &str> {
    output.split_inclusive('\n')
}

/// Returns a short name of an event for a snapshot.
fn label(line: &str) -> String {
    let Ok(event) = serde_json::from_str::<serde_json::Value>(line) else {
        return "not an event".to_owned();
    };
    let update = &event["params"]["update"]["sessionUpdate"];
    let kinds = [update, &event["method"], &event["type"]];
    let kind = kinds.iter().find_map(|kind| kind.as_str());
    let subtype = [&event["subtype"], &event["request"]["subtype"]];
    let subtype = subtype.iter().find_map(|kind| kind.as_str());
    match (kind, subtype) {
        (Some(kind), Some(subtype)) => format!("{kind} {subtype}"),
        (Some(kind), None) => kind.to_owned(),
        (None, _) if event["error"].is_object() => "error response".to_owned(),
        (None, _) => "response".to_owned(),
    }
}

fn states(pane: &mut Glasspane, output: &str) -> String {
    let mut shown = String::new();
    let mut before = String::new();
    for line in lines(output) {
        pane.push_output(line.as_bytes(), 1);
        let view = pane.view();
        let activity = view.activity.map(|activity| activity.to_string());
        let after = format!(
            "{:<8} {:<21} tools {:<8} queued {} turns {} tokens {}+{}+{} ${:.4} error {}",
            view.state,
            activity.as_deref().unwrap_or("-"),
            view.tools.join(","),
            view.queued,
            view.turns,
            view.input_tokens,
            view.cached_tokens,
            view.output_tokens,
            view.cost_usd,
            view.last_error.as_deref().unwrap_or("-")
        );
        if after != before {
            writeln!(shown, "{:<26} {after}", label(line)).unwrap();
        }
        before = after;
    }
    shown
}

#[test]
fn recorded_sessions_have_expected_states() {
    for Session {
        name,
        runtime,
        output,
    } in sessions()
    {
        let mut pane = Glasspane::new(runtime, 0);
        let shown = states(&mut pane, &output);
        let view = pane.view();
        assert_eq!((view.malformed_lines, &view.mismatch), (0, &None), "{name}");
        let session = view.session.as_deref().unwrap_or("-");
        let answer = view.answer.as_deref().unwrap_or("-").to_owned();
        let summary = format!("session {session}\nanswer {answer}\n");
        pane.record_exit(&Exit::new(Some(ExitStatus::Code(0)), None), None, 2);
        let end = pane.view().state;
        insta::assert_snapshot!(name, format!("{shown}{summary}exit 0: {end}\n"));
    }
}

#[test]
fn recorded_sessions_have_expected_transcripts() {
    for session in sessions() {
        let mut transcript = Transcript::new(session.runtime);
        let mut formatter = TranscriptFormatter::new(false);
        let mut shown = String::new();
        for item in transcript.push_stdout(session.output.as_bytes()) {
            shown.push_str(&formatter.format(&item));
        }
        shown.push_str(formatter.end_line());
        insta::assert_snapshot!(format!("{}-transcript", session.name), shown);
    }
}

#[test]
fn transcript_with_colours_is_as_expected() {
    let sessions = sessions();
    let session = sessions
        .iter()
        .find(|session| session.name == "pi-json-tool-fails");
    let mut formatter = TranscriptFormatter::new(true);
    let items = Transcript::new(AgentRuntime::Pi).push_stdout(session.unwrap().output.as_bytes());
    let shown: String = items.iter().map(|item| formatter.format(item)).collect();
    insta::assert_snapshot!(shown.escape_debug().to_string().replace("\\n", "\n"));
}

#[test]
fn runtime_of_each_session_is_recognized() {
    for Session {
        name,
        runtime,
        output,
    } in sessions()
    {
        let mut pane = Glasspane::new(AgentRuntime::Auto, 0);
        pane.push_output(output.as_bytes(), 1);
        assert_eq!(pane.view().runtime, runtime, "{name}");
        let mut known = Glasspane::new(runtime, 0);
        known.push_output(output.as_bytes(), 1);
        assert_eq!(pane.view().state, known.view().state, "{name}");
    }
}

#[test]
fn session_of_another_runtime_is_a_mismatch() {
    for session in sessions() {
        let runtime = session.runtime;
        for &other in AgentRuntime::ALL {
            let mut pane = Glasspane::new(other, 0);
            pane.push_output(session.output.as_bytes(), 1);
            let has_parser = !matches!(other, AgentRuntime::Auto | AgentRuntime::Generic);
            let related = [AgentRuntime::Claude, AgentRuntime::Qwen];
            if other == runtime || (related.contains(&other) && related.contains(&runtime)) {
                continue;
            }
            pane.record_exit(&Exit::new(Some(ExitStatus::Code(0)), None), None, 2);
            let view = pane.view();
            let is_reported = view.mismatch.is_some();
            assert_eq!(
                is_reported, has_parser,
                "{} as {other}: {view:?}",
                session.name
            );
            assert_ne!(view.state, AgentState::Working, "{}", session.name);
        }
    }
}
