//! Finds the daemon, or starts one for this user and says so.

use std::path::{Path, PathBuf};

use colibri_client::{Agent, Client, Endpoint, TrustedUsers, default_socket};
use colibri_config::ConfigFile;
use colibri_config::{PartialSettings, SettingsError};

use crate::args::Global;
use crate::error::CliError;
use crate::output;
use crate::paths::{Here, PathError};

/// A variable's value.
pub(crate) fn lookup(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// What the flags, the environment and the settings file say.
pub(crate) fn settings(global: &Global) -> Result<PartialSettings, CliError> {
    Ok(stronger(global)?.or(ConfigFile::read_settings(None, lookup)?))
}

/// Returns the settings from flags and environment. A relative socket path is resolved against the current directory.
fn stronger(global: &Global) -> Result<PartialSettings, PathError> {
    let typed = global.socket.as_deref();
    let flags = PartialSettings {
        socket: typed.map(|path| Here::now().path(path)).transpose()?,
        daemon_user: lookup("COLIBRI_DAEMON_USER").filter(|user| !user.is_empty()),
        ..PartialSettings::default()
    };
    Ok(flags.or(PartialSettings::from_env(lookup)))
}

/// Returns the socket at which a daemon with these settings listens.
pub(crate) fn socket(partial: &PartialSettings) -> PathBuf {
    let state_dir = partial.state_dir_or_default(lookup);
    partial
        .socket
        .clone()
        .unwrap_or_else(|| default_socket(lookup, state_dir.as_deref()))
}

/// Returns the endpoint of the daemon. If a flag or the environment names the socket, an unreadable settings file is
/// ignored.
pub(crate) fn endpoint(global: &Global) -> Result<Endpoint, CliError> {
    let stronger = stronger(global)?;
    let file: Result<PartialSettings, SettingsError> = ConfigFile::read_settings(None, lookup);
    let file = match stronger.socket {
        Some(_) => file.unwrap_or_default(),
        None => file?,
    };
    let partial = stronger.or(file);
    let trusted = match &partial.daemon_user {
        Some(user) => TrustedUsers::and_user(user)?,
        None => TrustedUsers::default(),
    };
    let state_dir = partial.state_dir_or_default(lookup);
    Ok(Endpoint {
        default_socket: default_socket(lookup, state_dir.as_deref()),
        named_socket: partial.socket,
        state_dir,
        trusted,
        program: (!global.no_autostart).then(daemon_program),
    })
}

/// Returns the `colibri-daemon` in the directory of this program, else the one in `PATH`.
fn daemon_program() -> PathBuf {
    std::env::current_exe()
        .ok()
        .and_then(|exe| exe.parent().map(|bin| bin.join("colibri-daemon")))
        .filter(|beside| Path::exists(beside))
        .unwrap_or_else(|| PathBuf::from("colibri-daemon"))
}

/// Connects to the daemon; starts one if none listens, unless `--no-autostart` is given.
pub(crate) async fn connect(global: &Global) -> Result<Client, CliError> {
    Ok(endpoint(global)?.connect_or_start(output::link).await?)
}

/// Connects to a running daemon; starts none.
pub(crate) async fn connect_existing(global: &Global) -> Result<Client, CliError> {
    Ok(endpoint(global)?.connect().await?)
}

/// Returns the agent that the user means; see [`colibri_client::resolve`].
pub(crate) async fn find(client: &Client, wanted: &str) -> Result<Agent, CliError> {
    Ok(client.find_agent(wanted).await?)
}

/// Waits until an agent has ended and returns it; continues with the next daemon if the daemon is restarted.
pub(crate) async fn wait(global: &Global, client: &Client, id: &str) -> Result<Agent, CliError> {
    Ok(endpoint(global)?
        .wait_agent(client, id, output::link)
        .await?)
}
