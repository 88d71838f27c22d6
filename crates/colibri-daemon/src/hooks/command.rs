//! One run of a hook: a program without a shell, in a separate process group, that gets the state change in its environment
//! and as JSON on stdin.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use colibri_config::Hook;
use colibri_glasspane::AgentState;
use colibri_types::{AgentId, is_unprintable};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Serialize;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, Command};

use crate::agent::{AgentSnapshot, RegisteredAgent};
use crate::metrics::HookOutcome;
use crate::times;

/// Maximum number of bytes of a hook's stderr that are logged.
const MAX_STDERR_BYTES: usize = 2048;
/// Timeout for the end of a hook's stderr after its exit: a process that it left behind may hold the pipe open.
const STDERR_END_TIMEOUT: Duration = Duration::from_millis(50);
/// Maximum length of a text in a hook's environment and JSON, in characters.
const MAX_TEXT_CHARS: usize = 300;

/// Environment variables of a hook, and the fields of its event whose values they have. A variable without a value is set
/// and empty.
const VARIABLES: [(&str, &str); 9] = [
    ("COLIBRI_AGENT_ID", "id"),
    ("COLIBRI_AGENT_NAME", "name"),
    ("COLIBRI_STATE", "state"),
    ("COLIBRI_PREVIOUS_STATE", "previous_state"),
    ("COLIBRI_RUN", "run"),
    ("COLIBRI_TOOL", "current_tool"),
    ("COLIBRI_ERROR", "error"),
    ("COLIBRI_EXIT_CODE", "exit_code"),
    ("COLIBRI_EXIT_SIGNAL", "exit_signal"),
];

/// The JSON object on a hook's stdin. Its fields have the order of colibri-daemon(8).
#[derive(Debug, Serialize)]
pub(super) struct HookEvent {
    time: String,
    event: &'static str,
    id: AgentId,
    name: Option<String>,
    state: AgentState,
    previous_state: Option<AgentState>,
    /// Number of earlier changes that this one replaced.
    merged: u64,
    run: u32,
    current_tool: Option<String>,
    error: Option<String>,
    exit_code: Option<i32>,
    exit_signal: Option<i32>,
}

impl HookEvent {
    pub(super) fn new(
        agent: &RegisteredAgent,
        snapshot: &AgentSnapshot,
        previous_state: Option<AgentState>,
        merged: u64,
    ) -> Self {
        let view = &snapshot.view;
        let exit = snapshot.exit.as_ref();
        let error = match exit {
            Some(exit) => exit.error.as_deref(),
            None => snapshot.last_error(),
        };
        Self {
            time: times::format_ms(view.since),
            event: "state",
            id: agent.spec.id.clone(),
            name: agent.spec.config.name.as_deref().map(clean),
            state: view.state,
            previous_state,
            merged,
            run: snapshot.status.run,
            current_tool: view.current_tool.as_deref().map(clean),
            error: error.map(clean),
            exit_code: exit.and_then(|exit| exit.exit().code()),
            exit_signal: exit.and_then(|exit| exit.exit().signal()),
        }
    }
}

/// Replaces control and invisible characters in untrusted text by spaces, and truncates it.
fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if is_unprintable(c) { ' ' } else { c })
        .take(MAX_TEXT_CHARS)
        .collect()
}

/// Returns a value of an event as text; empty for null.
fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

/// A running hook. Dropping it kills its process group.
pub(super) struct RunningHook {
    child: Child,
}

/// Starts a hook.
///
/// # Errors
/// The program cannot be executed.
pub(super) fn start(
    hook: &Hook,
    environment: &[(String, String)],
    event: &HookEvent,
) -> io::Result<RunningHook> {
    let fields = serde_json::to_value(event)?;
    let child = Command::new(&hook.program)
        .args(&hook.args)
        .current_dir("/")
        .env_clear()
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .envs(VARIABLES.map(|(variable, field)| (variable, text(&fields[field]))))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    Ok(RunningHook { child })
}

impl RunningHook {
    /// Writes the event to the hook's stdin, waits for its exit or timeout, and logs a failure.
    pub(super) async fn wait(
        mut self,
        id: &AgentId,
        hook: &Hook,
        event: &HookEvent,
    ) -> HookOutcome {
        let line = serde_json::to_string(event).unwrap_or_default() + "\n";
        let stdin = self.child.stdin.take();
        let write_event = async {
            if let Some(mut stdin) = stdin {
                // A hook need not read its stdin.
                let _ = stdin.write_all(line.as_bytes()).await;
            }
        };
        let mut stderr_start = Vec::new();
        let mut stderr = self.child.stderr.take();
        let exchange = async {
            tokio::join!(write_event, drain(&mut stderr, &mut stderr_start));
            std::future::pending().await
        };
        let outcome = tokio::select! {
            outcome = tokio::time::timeout(hook.timeout, self.child.wait()) => outcome,
            outcome = exchange => outcome,
        };
        let _ =
            tokio::time::timeout(STDERR_END_TIMEOUT, drain(&mut stderr, &mut stderr_start)).await;
        let program = hook.program.display();
        let state = event.state.to_string();
        let stderr = clean(String::from_utf8_lossy(&stderr_start).trim_end());
        match outcome {
            Ok(Ok(status)) if status.success() => {
                tracing::debug!(%id, %program, state, "hook succeeded");
                HookOutcome::Ok
            }
            Ok(Ok(status)) => {
                tracing::error!(%id, %program, state, %status, stderr, "hook failed");
                HookOutcome::Failed
            }
            Ok(Err(error)) => {
                tracing::error!(%id, %program, %error, "cannot wait for hook");
                HookOutcome::Failed
            }
            Err(_) => {
                tracing::error!(%id, %program, state, timeout = ?hook.timeout, stderr, "hook exceeded its timeout; killing it");
                self.kill();
                let _ = self.child.wait().await;
                HookOutcome::Timeout
            }
        }
    }

    /// Kills the process group, unless the hook has ended.
    fn kill(&self) {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok());
        if let Some(group) = pid.and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for RunningHook {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Reads stderr to its end, so that the hook does not block, and keeps its start.
async fn drain(stderr: &mut Option<ChildStderr>, start: &mut Vec<u8>) {
    if let Some(stderr) = stderr {
        let mut buffer = [0; 1024];
        while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
            let room = MAX_STDERR_BYTES.saturating_sub(start.len()).min(count);
            start.extend_from_slice(buffer.get(..room).unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_in_texts_become_spaces() {
        assert_eq!(clean("a\0b\nc\x1b[2J\u{202e}d\u{9b}e"), "a b c [2J d e");
        assert_eq!(clean(&"ä".repeat(1000)).chars().count(), MAX_TEXT_CHARS);
    }
}
