//! Colibri with and without a sandbox.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use colibri_client::{MountConfig, Notification, StreamChoice, SubscribeParams};

use super::{Peer, SpawnPeer, StorePeer, check_stored};
use crate::colibri::{Colibri, next_event};

/// Starts agents; a subscriber to all events receives their output.
pub(super) struct ColibriSpawn {
    colibri: Colibri,
    sandbox: bool,
}

impl ColibriSpawn {
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

impl Peer for ColibriSpawn {
    fn name(&self) -> String {
        name(self.sandbox).to_owned()
    }
}

impl SpawnPeer for ColibriSpawn {
    fn first_byte(&mut self, command: &[&str]) -> Result<Duration> {
        self.colibri.first_byte(command, self.sandbox)
    }
}

/// Stores the output of agents in their journals.
pub(super) struct ColibriStore {
    colibri: Colibri,
    sandbox: bool,
    /// Whether a subscriber receives all output. If not, the files of the journal are watched.
    live: bool,
}

impl ColibriStore {
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

impl Peer for ColibriStore {
    fn name(&self) -> String {
        let name = name(self.sandbox);
        match self.live {
            false => name.to_owned(),
            true => format!("{name}, live subscriber"),
        }
    }
}

impl StorePeer for ColibriStore {
    fn store(&mut self, file: &Path, bytes: u64) -> Result<Duration> {
        let path = file.to_str().context("the file's name is not UTF-8")?;
        let mut params = Colibri::params(&["cat", path], self.sandbox);
        if let Some(jail) = &mut params.jail {
            jail.mounts.push(MountConfig {
                source: path.to_owned(),
                target: None,
                read_only: true,
            });
        }
        let directory = self.colibri.directory().to_owned();
        let directory = directory.as_path();
        let (client, events) = (&self.colibri.client, &mut self.colibri.events);
        let (id, duration) = self.colibri.runtime.block_on(async {
            let requested_at = Instant::now();
            let id = client.spawn_agent(params).await?.id;
            let mut duration = None;
            if !self.live {
                duration = time_stored(&stdout(directory, &id), bytes)?
                    .map(|stored_at| stored_at - requested_at);
            }
            let mut received = 0;
            loop {
                match next_event(events).await? {
                    Notification::AgentOutput(output) if output.id == id => {
                        ensure!(output.offset == received, "a gap in the received output");
                        received += output.data.into_bytes()?.len() as u64;
                        if received == bytes {
                            duration = Some(requested_at.elapsed());
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
            let duration = duration.unwrap_or_else(|| requested_at.elapsed());
            ensure!(
                received == if self.live { bytes } else { 0 },
                "received {received} of {bytes} bytes"
            );
            anyhow::Ok((id, duration))
        })?;
        check_stored(file, &segments(&stdout(directory, &id))?)?;
        self.colibri.runtime.block_on(client.remove_agent(&id))?;
        Ok(duration)
    }
}

/// Returns the path of an agent's output in the daemon's state directory.
fn stdout(directory: &Path, id: &str) -> PathBuf {
    directory.join("state/agents").join(id).join("stdout")
}

/// Waits until a journal has this many bytes, and returns the time.
#[cfg(target_os = "linux")]
fn time_stored(journal: &Path, bytes: u64) -> Result<Option<Instant>> {
    super::log::Watch::new(journal)?
        .wait_for(".log", bytes)
        .map(Some)
}

/// Returns `None`, because no watch of files is implemented: the exit event is the time at which the output is stored.
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
