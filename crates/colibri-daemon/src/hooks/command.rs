//! One run of a hook: a program without a shell, in a process group of its own, with the change in its environment and
//! as JSON on its stdin.

use std::collections::BTreeMap;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use colibri_config::Hook;
use colibri_glasspane::AgentState;
use colibri_types::AgentId;
use colibri_types::ExitStatus;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, Command};

use crate::registry::{Entry, Snapshot};
use crate::times;

/// What a hook writes to stderr is logged up to here, in bytes.
const MAX_SAID: usize = 2048;
/// How long the end of its stderr is waited for.
const LAST_WORDS: Duration = Duration::from_millis(50);
/// Longest text that a hook is told, in characters.
const MAX_TEXT: usize = 300;

/// How a hook ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HookEnd {
    Ok,
    Failed,
    Timeout,
}

/// What a hook is told, as the JSON object on its stdin.
#[derive(Debug, Serialize)]
pub(super) struct Told {
    time: String,
    event: &'static str,
    id: String,
    name: Option<String>,
    state: AgentState,
    previous_state: Option<AgentState>,
    /// So many changes are not told, as this one took their place.
    merged: u64,
    run: u32,
    current_tool: Option<String>,
    error: Option<String>,
    exit_code: Option<i32>,
    exit_signal: Option<i32>,
}

impl Told {
    pub(super) fn new(
        entry: &Entry,
        snapshot: &Snapshot,
        previous_state: Option<AgentState>,
        merged: u64,
    ) -> Self {
        let view = &snapshot.view;
        let exit = snapshot.exit.as_ref();
        let error = match exit {
            Some(exit) => exit.error.as_deref(),
            None => snapshot.stalled.as_deref().or(view.last_error.as_deref()),
        };
        let (exit_code, exit_signal) = match exit.and_then(|exit| exit.exit) {
            Some(ExitStatus::Code(code)) => (Some(code), None),
            Some(ExitStatus::Signal(signal)) => (None, Some(signal)),
            None => (None, None),
        };
        Self {
            time: times::from_ms(view.since),
            event: "state",
            id: entry.spec.id.to_string(),
            name: entry.spec.config.name.as_deref().map(clean),
            state: view.state,
            previous_state,
            merged,
            run: snapshot.run,
            current_tool: view.current_tool.as_deref().map(clean),
            error: error.map(clean),
            exit_code,
            exit_signal,
        }
    }

    /// The same as environment variables. One that has no value is set and empty.
    fn variables(&self) -> BTreeMap<&'static str, String> {
        let state =
            |state: Option<AgentState>| state.map_or(String::new(), |state| state.to_string());
        let number =
            |number: Option<i32>| number.map_or(String::new(), |number| number.to_string());
        BTreeMap::from([
            ("COLIBRI_AGENT_ID", self.id.clone()),
            ("COLIBRI_AGENT_NAME", self.name.clone().unwrap_or_default()),
            ("COLIBRI_STATE", state(Some(self.state))),
            ("COLIBRI_PREVIOUS_STATE", state(self.previous_state)),
            ("COLIBRI_RUN", self.run.to_string()),
            (
                "COLIBRI_TOOL",
                self.current_tool.clone().unwrap_or_default(),
            ),
            ("COLIBRI_ERROR", self.error.clone().unwrap_or_default()),
            ("COLIBRI_EXIT_CODE", number(self.exit_code)),
            ("COLIBRI_EXIT_SIGNAL", number(self.exit_signal)),
        ])
    }
}

/// Words of an agent or of whoever started it, without what moves a cursor, ends a line, or turns text around.
fn clean(text: &str) -> String {
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars()
        .map(|c| if c.is_control() || turns(c) { ' ' } else { c })
        .take(MAX_TEXT)
        .collect()
}

/// A hook that runs. Dropping it kills its process group.
pub(super) struct Running {
    child: Child,
    group: Option<Pid>,
}

/// Starts a hook.
///
/// # Errors
/// The program cannot be executed.
pub(super) fn start(
    hook: &Hook,
    environment: &[(String, String)],
    told: &Told,
) -> io::Result<Running> {
    let child = Command::new(&hook.program)
        .args(&hook.args)
        .current_dir("/")
        .env_clear()
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .envs(told.variables())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let group = child
        .id()
        .and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    Ok(Running { child, group })
}

impl Running {
    /// Hands it the change, waits for its end or its time, and logs what went wrong.
    pub(super) async fn end(mut self, id: &AgentId, hook: &Hook, told: &Told) -> HookEnd {
        let mut text = serde_json::to_vec(told).unwrap_or_default();
        text.push(b'\n');
        let stdin = self.child.stdin.take();
        let hand_over = async {
            if let Some(mut stdin) = stdin {
                // One that does not read it has said so by that.
                let _ = stdin.write_all(&text).await;
            }
            std::future::pending::<()>().await;
        };
        let mut said = Vec::new();
        let mut stderr = self.child.stderr.take();
        let listen = async {
            hear(&mut stderr, &mut said).await;
            std::future::pending::<()>().await;
        };
        let outcome = tokio::select! {
            outcome = tokio::time::timeout(hook.timeout, self.child.wait()) => outcome,
            () = hand_over => return HookEnd::Failed,
            () = listen => return HookEnd::Failed,
        };
        // What it said last; a process that it leaves behind may hold the pipe open.
        let _ = tokio::time::timeout(LAST_WORDS, hear(&mut stderr, &mut said)).await;
        let program = hook.program.display();
        let said = clean(String::from_utf8_lossy(&said).trim_end());
        match outcome {
            Ok(Ok(status)) if status.success() => {
                self.group = None;
                tracing::debug!(%id, %program, state = %told.state, "hook has run");
                HookEnd::Ok
            }
            Ok(Ok(status)) => {
                self.group = None;
                tracing::error!(%id, %program, state = %told.state, %status, said, "hook failed");
                HookEnd::Failed
            }
            Ok(Err(error)) => {
                tracing::error!(%id, %program, %error, "hook not waited for");
                HookEnd::Failed
            }
            Err(_) => {
                tracing::error!(%id, %program, state = %told.state, timeout = ?hook.timeout, said, "hook took too long and is killed");
                self.kill();
                let _ = self.child.wait().await;
                HookEnd::Timeout
            }
        }
    }

    fn kill(&mut self) {
        if let Some(group) = self.group.take() {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Keeps the beginning of what it says, and reads the rest so that it is not held up.
async fn hear(stderr: &mut Option<ChildStderr>, said: &mut Vec<u8>) {
    if let Some(stderr) = stderr {
        let mut buffer = [0; 1024];
        while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
            let room = MAX_SAID.saturating_sub(said.len()).min(count);
            said.extend_from_slice(buffer.get(..room).unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_cannot_end_a_line_or_turn_text_around() {
        assert_eq!(clean("a\0b\nc\x1b[2J\u{202e}d\u{9b}e"), "a b c [2J d e");
        assert_eq!(clean(&"ä".repeat(1000)).chars().count(), MAX_TEXT);
    }
}
