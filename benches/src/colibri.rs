//! A daemon under measurement, in a temporary directory, from any build of the programs.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use colibri_client::{
    Client, ClientError, Events, JailConfig, KillParams, Notification, SpawnRequest,
    SubscribeParams,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Timeout after which an operation is a failure.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(120);

/// A running daemon and a connection to it. Dropping it ends the daemon and its agents.
pub(crate) struct Colibri {
    directory: TempDir,
    programs: PathBuf,
    daemon: Option<Child>,
    pub(crate) runtime: Runtime,
    pub(crate) client: Client,
    pub(crate) events: Events,
}

impl Colibri {
    /// Starts the daemon in the directory `programs`, and subscribes to all events.
    pub(crate) fn start(programs: &Path) -> Result<Self> {
        // Not in /tmp, which is private in sandboxes.
        let directory = tempfile::Builder::new()
            .prefix("colibri-bench-")
            .tempdir_in("/var/tmp")?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let mut child = launch(programs, directory.path())?;
        let connected = runtime.block_on(connect(directory.path()));
        let (client, events) = match connected {
            Ok(connected) => connected,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        };
        Ok(Self {
            directory,
            programs: programs.to_owned(),
            daemon: Some(child),
            runtime,
            client,
            events,
        })
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn pid(&self) -> Result<u32> {
        Ok(self.daemon.as_ref().context("no daemon runs")?.id())
    }

    /// Kills the daemon, starts the next one, and returns the time until that daemon has adopted all agents.
    pub(crate) fn restart(&mut self) -> Result<Duration> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill()?;
            daemon.wait()?;
        }
        let started = Instant::now();
        self.daemon = Some(launch(&self.programs, self.directory.path())?);
        let directory = self.directory.path();
        let (client, duration, events) = self.runtime.block_on(async {
            let (client, events) = connect(directory).await?;
            anyhow::Ok((client, started.elapsed(), events))
        })?;
        (self.client, self.events) = (client, events);
        Ok(duration)
    }

    /// Replaces the subscription.
    pub(crate) fn subscribe(&mut self, params: SubscribeParams) -> Result<()> {
        self.events = self.runtime.block_on(self.client.subscribe(params))?;
        Ok(())
    }

    /// Runs a future and discards all events meanwhile, so that their queue does not grow.
    pub(crate) fn run_discarding_events<T>(&mut self, work: impl Future<Output = T>) -> Result<T> {
        let events = &mut self.events;
        self.runtime.block_on(async {
            tokio::pin!(work);
            loop {
                tokio::select! {
                    done = &mut work => return Ok(done),
                    event = next_event(events) => drop(event?),
                }
            }
        })
    }

    /// Returns the parameters of a spawn of `command`, with or without a sandbox.
    pub(crate) fn params(command: &[&str], sandbox: bool) -> SpawnRequest {
        SpawnRequest {
            program: command.first().map(ToString::to_string),
            args: Some(command.iter().skip(1).map(ToString::to_string).collect()),
            jail: sandbox.then(|| JailConfig {
                path: Some("/".to_owned()),
                ..JailConfig::default()
            }),
            ..SpawnRequest::default()
        }
    }

    /// Spawns an agent and returns the time from the request until a subscriber has its first byte. Removes the agent.
    pub(crate) fn first_byte(&mut self, command: &[&str], sandbox: bool) -> Result<Duration> {
        let params = Self::params(command, sandbox);
        let (client, events) = (&self.client, &mut self.events);
        self.runtime.block_on(async {
            let requested_at = Instant::now();
            let spawned = client.spawn_agent(params);
            tokio::pin!(spawned);
            // The first output may arrive before the answer of the spawn.
            let (mut id, mut writer) = (None, None);
            let duration = loop {
                if id.is_some() && id == writer {
                    break requested_at.elapsed();
                }
                tokio::select! {
                    answer = &mut spawned, if id.is_none() => id = Some(answer?.id),
                    event = next_event(events) => match event? {
                        Notification::AgentOutput(output) => writer = Some(output.id),
                        Notification::AgentExit(exit) if id.as_ref() == Some(&exit.id) => {
                            bail!("the agent ended without a byte: {:?} {:?}", exit.exit, exit.error)
                        }
                        _ => {}
                    },
                }
            };
            let id = id.context("no id")?;
            kill_and_remove(client, &id).await?;
            Ok(duration)
        })
    }
}

/// Returns the next event of a subscription.
pub(crate) async fn next_event(events: &mut Events) -> Result<Notification> {
    let event = events.next().await;
    event.context("the connection to the daemon ended")
}

/// Kills an agent and removes it.
pub(crate) async fn kill_and_remove(client: &Client, id: &str) -> Result<()> {
    client.kill_agent(KillParams::new(id)).await?;
    client.remove_agent(id).await?;
    Ok(())
}

fn launch(programs: &Path, directory: &Path) -> Result<Child> {
    let program = programs.join("colibri-daemon");
    Command::new(&program)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("HOME", directory)
        .env("COLIBRI_SOCKET", directory.join("run/colibri.sock"))
        .env("COLIBRI_STATE_DIR", directory.join("state"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(directory.join("log"))?)
        .spawn()
        .with_context(|| format!("{} does not start; build it first", program.display()))
}

/// Connects to the daemon in this directory as soon as it answers, and subscribes to all events.
async fn connect(directory: &Path) -> Result<(Client, Events)> {
    let socket = directory.join("run/colibri.sock");
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match connect_once(&socket).await {
            // Between fork(2) and execve(2), a shim that the killed daemon was starting has its socket.
            Err(_) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(1)).await
            }
            result => return Ok(result?),
        }
    }
}

async fn connect_once(socket: &Path) -> Result<(Client, Events), ClientError> {
    let client = Client::connect(socket).await?;
    let events = client.subscribe(SubscribeParams::default()).await?;
    // The daemon listens before it adopts agents, and answers after that.
    client.version().await?;
    Ok((client, events))
}

impl Drop for Colibri {
    fn drop(&mut self) {
        let client = &self.client;
        let _ = self.runtime.block_on(async {
            for agent in client.list_agents().await? {
                if agent.exited_at.is_none() {
                    kill_and_remove(client, &agent.id).await?;
                }
            }
            anyhow::Ok(())
        });
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}
