//! Colibri.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use colibri_client::{Notification, StreamChoice, SubscribeParams};

use super::{Copies, Named, Spawns, check};
use crate::colibri::Colibri;

/// A subscriber to all events receives the output.
pub(super) struct Ours {
    colibri: Colibri,
    sandbox: bool,
}

impl Ours {
    pub(super) fn start(programs: &Path, sandbox: bool) -> Result<Self> {
        let colibri = Colibri::start(programs)?;
        Ok(Self { colibri, sandbox })
    }
}

fn name(sandbox: bool) -> &'static str {
    match sandbox {
        false => "Colibri, no jail",
        true => "Colibri, sandbox",
    }
}

impl Named for Ours {
    fn name(&self) -> String {
        name(self.sandbox).to_owned()
    }
}

impl Spawns for Ours {
    fn first_byte(&mut self, command: &[&str]) -> Result<Duration> {
        self.colibri.first_byte(command, self.sandbox)
    }
}

/// Output in the journal, whose files are watched, or received by a subscriber from the first byte on.
pub(super) struct Kept {
    colibri: Colibri,
    sandbox: bool,
    live: bool,
}

impl Kept {
    pub(super) fn start(programs: &Path, sandbox: bool, live: bool) -> Result<Self> {
        let mut colibri = Colibri::start(programs)?;
        colibri.subscribe(SubscribeParams {
            stream: Some(match live {
                true => StreamChoice::Stdout,
                false => StreamChoice::None,
            }),
            from_offset: live.then_some(0),
            ..SubscribeParams::default()
        })?;
        Ok(Self {
            colibri,
            sandbox,
            live,
        })
    }
}

impl Named for Kept {
    fn name(&self) -> String {
        let name = name(self.sandbox);
        match self.live {
            false => name.to_owned(),
            true => format!("{name}, live subscriber"),
        }
    }
}

impl Copies for Kept {
    fn copy(&mut self, file: &Path, bytes: u64) -> Result<Duration> {
        let path = file.to_str().context("the file's name is not UTF-8")?;
        let params = Colibri::params(&["cat", path], self.sandbox);
        let directory = self.colibri.directory().to_owned();
        let directory = directory.as_path();
        let (client, events) = (&self.colibri.client, &mut self.colibri.events);
        let (id, took) = self.colibri.runtime.block_on(async {
            let requested_at = Instant::now();
            let id = client.spawn_agent(params).await?.id;
            let mut took = None;
            if !self.live {
                took = time_stored(&stdout(directory, &id), bytes)?
                    .map(|stored_at| stored_at - requested_at);
            }
            let mut received = 0;
            loop {
                match events
                    .next()
                    .await
                    .context("the connection to the daemon ended")?
                {
                    Notification::AgentOutput(output) if output.id == id => {
                        ensure!(output.offset == received, "a gap in the received output");
                        received += output.data.into_bytes()?.len() as u64;
                        if received == bytes {
                            took = Some(requested_at.elapsed());
                        }
                    }
                    Notification::AgentExit(exit) if exit.id == id => {
                        ensure!(
                            exit.exit.and_then(|exit| exit.code()) == Some(0),
                            "cat failed: {:?} {:?}",
                            exit.exit,
                            exit.error
                        );
                        break;
                    }
                    _ => {}
                }
            }
            let took = took.unwrap_or_else(|| requested_at.elapsed());
            ensure!(
                received == if self.live { bytes } else { 0 },
                "received {received} of {bytes} bytes"
            );
            anyhow::Ok((id, took))
        })?;
        check(file, &segments(&stdout(directory, &id))?)?;
        self.colibri.runtime.block_on(client.remove_agent(&id))?;
        Ok(took)
    }
}

/// Returns the path of an agent's output in the daemon's state directory.
fn stdout(directory: &Path, id: &str) -> PathBuf {
    directory.join("state/agents").join(id).join("stdout")
}

/// Returns the time at which a journal has this many bytes.
#[cfg(target_os = "linux")]
fn time_stored(journal: &Path, bytes: u64) -> Result<Option<Instant>> {
    super::log::Watch::new(journal)?
        .wait_for(".log", bytes)
        .map(Some)
}

/// No notification here: the output is complete when the agent's end is reported.
#[cfg(not(target_os = "linux"))]
fn time_stored(_journal: &Path, _bytes: u64) -> Result<Option<Instant>> {
    Ok(None)
}

/// Returns the files of a journal in order.
fn segments(journal: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(journal).with_context(|| journal.display().to_string())?;
    let mut logs: Vec<PathBuf> = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    logs.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    logs.sort();
    Ok(logs)
}
