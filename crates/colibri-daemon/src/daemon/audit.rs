//! `audit.jsonl`: one line for each request that changes something, with who asked and what came of it.

use std::path::{Path, PathBuf};

use colibri_config::LogLimits;
use colibri_proto::Call;
use serde::Serialize;

use crate::rotation::RotatedLog;
use crate::{pool, times};

/// Who sits at the other end of a connection, as the kernel says (unix(7) SO_PEERCRED, unix(4) LOCAL_PEERCRED).
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Peer {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) pid: Option<i32>,
}

impl Peer {
    /// The daemon itself, for what it does without being asked.
    pub(crate) fn own() -> Self {
        Self {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            pid: Some(rustix::process::getpid().as_raw_pid()),
        }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    #[serde(flatten)]
    peer: Peer,
    #[serde(flatten)]
    call: &'a Call,
    /// The agent that it made.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    outcome: &'a str,
}

/// The audit file.
pub(crate) struct Audit {
    path: PathBuf,
    log: RotatedLog,
}

impl Audit {
    pub(crate) fn new(state: &Path, limits: LogLimits) -> Self {
        let path = state.join("audit.jsonl");
        Self {
            log: RotatedLog::new(path.clone(), limits),
            path,
        }
    }

    /// Writes a line if the call changes something. Values of `env` and the bytes of inputs are left out:
    /// they may be secrets.
    pub(crate) async fn record(&self, peer: Peer, call: &Call, made: Option<&str>, outcome: &str) {
        let redacted = match call {
            Call::SpawnAgent(params) => {
                let mut params = params.clone();
                params
                    .env
                    .0
                    .values_mut()
                    .for_each(|value| "<redacted>".clone_into(value));
                Call::SpawnAgent(params)
            }
            Call::SendInput(params) => {
                let mut params = params.clone();
                params.data.data = format!("<{} bytes>", params.data.data.len());
                Call::SendInput(params)
            }
            Call::KillAgent(_)
            | Call::RestartAgent(_)
            | Call::RemoveAgent(_)
            | Call::CloseInput(_)
            | Call::ReloadConfig(_)
            | Call::Shutdown(_) => call.clone(),
            _ => return,
        };
        let line = Line {
            time: times::from_ms(times::now_ms()),
            peer,
            call: &redacted,
            id: made,
            outcome,
        };
        let text = match serde_json::to_vec(&line) {
            Ok(mut text) => {
                text.push(b'\n');
                text
            }
            Err(error) => {
                tracing::error!(path = %self.path.display(), %error, "audit line not written");
                return;
            }
        };
        let log = self.log.clone();
        let written = pool::short(move || {
            let written = log.append(&text);
            // Closed after each line: a file open for writing prevents a read-only remount of its file system.
            log.reopen();
            written
        });
        let written = written.await.flatten();
        if let Err(error) = written {
            tracing::error!(path = %self.path.display(), %error, "audit line not written");
        }
    }
}
