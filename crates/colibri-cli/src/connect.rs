//! Finds the daemon, or starts one for this user and says so.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use colibri_client::{Agent, Client, ClientError, default_socket};
use colibri_spawner::file::ConfigFile;
use colibri_spawner::settings::Partial;
use tokio::io::AsyncReadExt;

use crate::args::Global;
use crate::error::CliError;
use crate::output;

/// Between two tries to reach a daemon that was just started.
const TRY_AGAIN: Duration = Duration::from_millis(10);

/// A variable's value.
pub(crate) fn lookup(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// What the flags, the environment and the settings file say.
pub(crate) fn settings(global: &Global) -> Result<Partial, CliError> {
    Ok(stronger(global).or(ConfigFile::read_settings(None, lookup)?))
}

/// What the flags and the environment say.
fn stronger(global: &Global) -> Partial {
    let flags = Partial {
        socket: global.socket.clone(),
        ..Partial::default()
    };
    flags.or(Partial::from_env(lookup))
}

/// The daemon's socket.
pub(crate) fn socket(partial: &Partial) -> PathBuf {
    partial
        .socket
        .clone()
        .unwrap_or_else(|| default_socket(lookup, None))
}

/// The same. Where the settings file is not needed, a mistake in it keeps nobody from the daemon.
fn socket_of(global: &Global) -> Result<PathBuf, CliError> {
    match stronger(global).socket {
        Some(socket) => Ok(socket),
        None => Ok(socket(&settings(global)?)),
    }
}

/// Connects to the daemon that there is.
pub(crate) async fn connect(global: &Global) -> Result<Client, CliError> {
    Ok(Client::connect(&socket_of(global)?).await?)
}

/// Connects, and starts a daemon where none listens.
pub(crate) async fn connect_or_start(global: &Global) -> Result<Client, CliError> {
    let socket = socket_of(global)?;
    match Client::connect(&socket).await {
        Err(ClientError::NoDaemon { .. }) if !global.no_autostart => start(&socket).await,
        other => Ok(other?),
    }
}

async fn start(socket: &Path) -> Result<Client, CliError> {
    let program = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.join("colibri-daemon")))
        .filter(|beside| beside.exists())
        .unwrap_or_else(|| PathBuf::from("colibri-daemon"));
    let mut child = tokio::process::Command::new(&program)
        .arg("--background")
        .arg("--socket")
        .arg(socket)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| CliError::Daemon {
            program: program.clone(),
            source,
        })?;
    loop {
        if let Ok(client) = Client::connect(socket).await {
            output::note(&format!(
                "started {} at {}",
                program.display(),
                socket.display()
            ));
            return Ok(client);
        }
        let Ok(ended) = tokio::time::timeout(TRY_AGAIN, child.wait()).await else {
            continue;
        };
        // Somebody else may have started one at the same moment, and that is as good.
        if let Ok(client) = Client::connect(socket).await {
            return Ok(client);
        }
        let mut said = String::new();
        if let Some(mut stderr) = child.stderr.take() {
            let _ = stderr.read_to_string(&mut said).await;
        }
        let status = ended.map(|status| status.to_string()).unwrap_or_default();
        return Err(CliError::DaemonFailed(if said.is_empty() {
            status
        } else {
            said.trim_end().to_owned()
        }));
    }
}

/// Returns the agent that the user means; see [`colibri_client::resolve`].
pub(crate) async fn find(client: &Client, wanted: &str) -> Result<Agent, CliError> {
    Ok(client.find_agent(wanted).await?)
}
