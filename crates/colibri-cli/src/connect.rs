//! Connects to the daemon; starts one for this user if none listens, unless the configured daemon is another user's.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use colibri_client::{Client, ClientError, Endpoint, TrustedUsers, default_socket};
use colibri_config::{ConfigFile, PartialSettings, SettingsError};

use crate::args::Global;
use crate::error::CliError;
use crate::output;
use crate::paths::CurrentDir;

/// Returns the value of an environment variable, if it is UTF-8.
pub(crate) fn lookup(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Returns the settings from options, environment and settings file, in this order of precedence.
pub(crate) fn settings(global: &Global) -> Result<PartialSettings, CliError> {
    Ok(explicit_settings(global)?.or(ConfigFile::read_settings(None, lookup)?))
}

/// Returns the settings from options and environment. A relative socket path is resolved against the current directory.
fn explicit_settings(global: &Global) -> Result<PartialSettings, CliError> {
    let socket = global.socket.as_deref();
    let options = PartialSettings {
        socket: socket
            .map(|path| CurrentDir::read().path(path))
            .transpose()?,
        daemon_user: lookup("COLIBRI_DAEMON_USER").filter(|user| !user.is_empty()),
        ..PartialSettings::default()
    };
    Ok(options.or(PartialSettings::from_env(lookup)))
}

/// Returns the socket at which a daemon with these settings listens.
pub(crate) fn socket(partial: &PartialSettings) -> PathBuf {
    let state_dir = partial.state_dir_or_default(lookup);
    partial
        .socket
        .clone()
        .unwrap_or_else(|| default_socket(lookup, state_dir.as_deref()))
}

/// Returns the endpoint of the daemon. An invalid settings file is ignored if an option or the environment sets the
/// socket.
pub(crate) fn endpoint(global: &Global) -> Result<Endpoint, CliError> {
    let explicit = explicit_settings(global)?;
    let file: Result<PartialSettings, SettingsError> = ConfigFile::read_settings(None, lookup);
    let file = match explicit.socket {
        Some(_) => file.unwrap_or_default(),
        None => file?,
    };
    let partial = explicit.or(file);
    let trusted = match &partial.daemon_user {
        Some(user) => TrustedUsers::with_user(user)?,
        None => TrustedUsers::default(),
    };
    // A daemon of this user would take the socket and the state directory of the other user's service.
    let may_start = !global.no_autostart && trusted.other_user().is_none();
    let state_dir = partial.state_dir_or_default(lookup);
    Ok(Endpoint {
        default_socket: default_socket(lookup, state_dir.as_deref()),
        named_socket: partial.socket,
        state_dir,
        trusted,
        program: may_start.then(daemon_program),
    })
}

/// Returns the `colibri-daemon` in the directory of this program, else the one in `PATH`.
fn daemon_program() -> PathBuf {
    std::env::current_exe()
        .ok()
        .and_then(|exe| exe.parent().map(|bin| bin.join("colibri-daemon")))
        .filter(|sibling| Path::exists(sibling))
        .unwrap_or_else(|| PathBuf::from("colibri-daemon"))
}

/// Connects to the daemon; starts one if none listens, unless `--no-autostart` is given or the daemon is another user's.
pub(crate) async fn connect(global: &Global) -> Result<Client, CliError> {
    connect_to(&endpoint(global)?).await
}

/// Connects to the daemon of this endpoint; starts one if none listens and the endpoint has its program.
pub(crate) async fn connect_to(endpoint: &Endpoint) -> Result<Client, CliError> {
    let connected = endpoint.connect_or_start(output::connection_event).await;
    connected.map_err(|error| match (error, endpoint.trusted.other_user()) {
        (ClientError::NoDaemon { path, source }, Some(uid))
            if matches!(
                source.kind(),
                ErrorKind::NotFound | ErrorKind::ConnectionRefused
            ) =>
        {
            CliError::NoService { path, source, uid }
        }
        (error, _) => error.into(),
    })
}

/// Connects to a running daemon; starts none.
pub(crate) async fn connect_existing(global: &Global) -> Result<Client, CliError> {
    Ok(endpoint(global)?.connect().await?)
}
