//! `audit.jsonl`: one line for each request that changes something, with who asked and what came of it.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use colibri_proto::Call;
use serde::Serialize;

use crate::times;

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
pub(crate) struct Audit(PathBuf);

impl Audit {
    pub(crate) fn new(state: &Path) -> Self {
        Self(state.join("audit.jsonl"))
    }

    /// Writes a line if the call changes something. Values of `env` and the bytes of inputs are left out:
    /// they may be secrets.
    pub(crate) fn record(&self, peer: Peer, call: &Call, made: Option<&str>, outcome: &str) {
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
        let written = serde_json::to_vec(&line)
            .map_err(std::io::Error::from)
            .and_then(|mut text| {
                text.push(b'\n');
                // One write(2) in append mode, so that lines do not mix. Opened anew: somebody may rotate it.
                OpenOptions::new()
                    .append(true)
                    .create(true)
                    .mode(0o600)
                    .open(&self.0)?
                    .write_all(&text)
            });
        if let Err(error) = written {
            tracing::error!(path = %self.0.display(), %error, "audit line not written");
        }
    }
}
