//! `audit.jsonl`: one line for each request that changes something, with its caller and its outcome.

use colibri_proto::Call;
use serde::Serialize;

use super::DaemonState;
use crate::{pool, times};

/// The process at the other end of a connection, as the kernel reports it (unix(7) SO_PEERCRED, unix(4) LOCAL_PEERCRED).
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Peer {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) pid: Option<i32>,
}

impl Peer {
    /// Returns the daemon itself, the caller of autostart and SIGHUP.
    pub(crate) fn daemon() -> Self {
        Self {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            pid: Some(rustix::process::getpid().as_raw_pid()),
        }
    }
}

#[derive(Serialize)]
struct AuditLine<'a> {
    time: String,
    #[serde(flatten)]
    peer: Peer,
    #[serde(flatten)]
    call: &'a Call,
    /// The agent that was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    outcome: &'a str,
}

/// Name of the audit log in the state directory.
pub(crate) const AUDIT_FILE: &str = "audit.jsonl";

impl DaemonState {
    /// Writes an audit line for a call that changes something; ignores other calls. `spawned` is the id of the agent that
    /// the call started. A failure is logged.
    pub(crate) async fn audit(
        &self,
        peer: Peer,
        call: &Call,
        spawned: Option<&str>,
        outcome: &str,
    ) {
        let Some(redacted) = redact(call) else {
            return;
        };
        let line = AuditLine {
            time: times::format_ms(times::now_ms()),
            peer,
            call: &redacted,
            id: spawned,
            outcome,
        };
        let text = serde_json::to_string(&line).map(|line| line + "\n");
        let log = self.audit_log.clone();
        let written = pool::run(move || {
            let written = log.append(text?.as_bytes());
            // Closed after each line: a file open for writing prevents a read-only remount of its file system.
            log.reopen();
            written
        });
        if let Err(error) = written.await {
            tracing::error!(path = %self.audit_log.path.display(), %error, "cannot write audit line");
        }
    }
}

/// Returns a call without the values of its environment and the bytes of its input, which may be secrets; `None` for a
/// call that changes nothing.
fn redact(call: &Call) -> Option<Call> {
    let mut redacted = call.clone();
    match &mut redacted {
        Call::SpawnAgent(params) => {
            let values = params.env.0.values_mut();
            values.for_each(|value| "<redacted>".clone_into(value));
            let files = params.jail.iter_mut().flat_map(|jail| &mut jail.home_files);
            for content in files.filter_map(|file| file.content.as_mut()) {
                *content = format!("<{} bytes>", content.len());
            }
        }
        Call::RestartAgent(params) => {
            let values = params.env.0.values_mut();
            values.for_each(|value| "<redacted>".clone_into(value));
        }
        Call::SendInput(params) => {
            params.data.data = format!("<{} bytes>", params.data.data.len());
        }
        Call::KillAgent(_)
        | Call::RemoveAgent(_)
        | Call::CloseInput(_)
        | Call::ReloadConfig(_)
        | Call::Shutdown(_) => {}
        Call::Version(_)
        | Call::ExplainSpawn(_)
        | Call::ListAgents(_)
        | Call::GetAgent(_)
        | Call::WaitAgent(_)
        | Call::ListRuns(_)
        | Call::GetUsage(_)
        | Call::ReadJournal(_)
        | Call::Subscribe(_)
        | Call::Unsubscribe(_)
        | Call::ResizeTerminal(_)
        | Call::Doctor(_)
        | Call::ListProfiles(_) => return None,
    }
    Some(redacted)
}
