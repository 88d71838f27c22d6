//! The start of the daemon: arguments, settings, locks, adoption of agents, sockets, signals and shutdown.

mod process;
mod state_files;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use colibri_config::{ConfigSources, DaemonConfig, PartialSettings, Registries, Settings};
use colibri_jail_core::EngineRegistry;
use colibri_prepare::{Cgroups, HostEnv, KnownDaemons, Preparer};
use colibri_priv::BackendRegistry;
use colibri_proto::{Call, Empty};
use colibri_spawner::{Spawner, StateDir};
use colibri_sys::daemon::{DaemonFile, default_socket};
use rustix::fs::Mode;
use signal_hook::consts::SIGXFSZ;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tracing_subscriber::EnvFilter;

use crate::connection::server;
use crate::daemon::DaemonState;
use crate::daemon::audit::{AUDIT_FILE, Peer};
use crate::daemon::config::{Configuration, tell_other_daemons};
use crate::errors::StartError;
use crate::handlers;
use crate::hooks::Hooks;
use crate::metrics::MetricsServer;
use crate::pool;
use crate::registry::Registry;
use crate::registry::retention;
use crate::rotation::RotatedLog;
use crate::socket::ListeningSocket;
use crate::supervision::Observers;

/// Runs AI coding agents unattended, each confined in a jail.
///
/// Settings come from flags, then the environment (COLIBRI_SOCKET, COLIBRI_STATE_DIR,
/// COLIBRI_JAIL_PRIV_MODE, COLIBRI_JAIL_HELPER, COLIBRI_JAIL_ENGINE, COLIBRI_SHIM, COLIBRI_METRICS), then the config file.
/// SIGHUP reloads the config file. The daemon ends on SIGTERM, SIGINT or a shutdown request. Its agents keep running, and the next
/// daemon with the same state directory adopts them.
#[derive(Debug, Clone, Parser)]
#[command(name = "colibri-daemon", version)]
pub struct DaemonArguments {
    /// Listen on this Unix socket
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Store agents in this directory
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Read settings from this TOML file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Serve metrics at unix:PATH or at a loopback address with a port, like 127.0.0.1:9464
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<String>,
    /// Format of log lines on stderr; COLIBRI_LOG sets the filter (default: info)
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Leave the session of the caller and log to daemon.log in the state directory
    #[arg(long, hide = true)]
    pub background: bool,
}

/// Format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Plain text.
    Text,
    /// One JSON object per line.
    Json,
}

/// Timeout at the end for blocking work: a file system that does not answer may never complete it.
const POOL_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// Returns the error for an operation of the system that the daemon needs to start.
fn failed(action: &str) -> impl FnOnce(io::Error) -> StartError {
    move |error| format!("cannot {action}: {error}").into()
}

/// Runs the whole program: parses the arguments and serves until a signal or a shutdown request.
///
/// `engines` are the jail engines that settings can name: register one with [`EngineRegistry::register`] to add it.
/// `backends` creates the privilege backends for the path of the helper, at the start and at each reload.
pub fn main(engines: EngineRegistry, backends: fn(&str) -> BackendRegistry) -> ExitCode {
    match run(DaemonArguments::parse(), Registries { engines, backends }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "colibri-daemon: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut arguments: DaemonArguments, registries: Registries) -> Result<(), StartError> {
    colibri_sys::signals::reset_inherited();
    // With a handler, a write beyond RLIMIT_FSIZE fails with EFBIG instead of ending the daemon.
    signal_hook::flag::register(SIGXFSZ, Arc::default()).map_err(failed("handle signals"))?;
    // Files of the daemon are readable only by its user; agents have their own umask.
    rustix::process::umask(Mode::from_raw_mode(0o077));
    if arguments.background {
        process::detach(&mut arguments).map_err(failed("detach from the caller"))?;
    }
    let lookup = |name: &str| std::env::var(name).ok();
    let flags = PartialSettings {
        socket: arguments.socket.clone(),
        state_dir: arguments.state_dir.clone(),
        metrics: arguments.metrics.clone(),
        ..PartialSettings::default()
    };
    let sources = ConfigSources {
        path: arguments.config.clone(),
        overrides: flags.or(PartialSettings::from_env(lookup)),
        registries,
    };
    let DaemonConfig {
        file,
        partial,
        settings,
    } = sources.load(lookup)?;
    let socket = partial
        .socket
        .clone()
        .unwrap_or_else(|| default_socket(lookup, Some(&settings.state_dir)));
    let mut preparer = Preparer {
        engine: settings.engine.clone(),
        backend: settings.backend.clone(),
        private_directories: settings.private_directories(&socket),
        private_files: file.private_files().collect(),
        known_daemons: Some(KnownDaemons::of_user()),
        host: HostEnv::of_process(),
        cgroups: Cgroups::claim(partial.cgroup.as_deref()),
        soft_open_files: None,
        adapter: settings.adapter.clone(),
    };
    let previous_limit = process::raise_open_files();
    StateDir::new(settings.state_dir.clone()).open()?;
    let log = install_log(&arguments, &settings)?;
    process::warn_of_low_priority();
    match previous_limit {
        Ok(limit) => preparer.soft_open_files = limit,
        Err(error) => {
            tracing::warn!(%error, "cannot raise the soft limit of open files; it limits the number of running agents")
        }
    }
    let mut spawner = Spawner::new(preparer, settings.state_dir.clone(), settings.shim.clone());
    spawner.journal = settings.journal;
    tell_other_daemons(&spawner);
    let _lock = state_files::lock_state(&settings.state_dir)?;
    // Left by a killed daemon.
    DaemonFile::remove(&settings.state_dir);
    let config = Configuration::new(sources, file, partial.clone());
    let audit_log = RotatedLog::new(settings.state_dir.join(AUDIT_FILE), settings.log);
    let runtime = pool::runtime().map_err(|error| {
        format!(
            "cannot start threads: {error}; end processes of this user, or raise the process limit (ulimit -u, TasksMax= in the systemd unit)"
        )
    })?;
    let outcome = runtime.block_on(async {
            let listening = ListeningSocket::open(&socket, partial.socket_group.as_deref()).await?;
            state_files::write_daemon_file(&settings.state_dir, &socket);
            let watch = |kind| signal(kind).map_err(failed("handle signals"));
            // Before the adoption, which may take long: a reload must not end the daemon.
            let mut hangup = watch(SignalKind::hangup())?;
            let metrics_server = match &settings.metrics {
                Some(address) => Some(MetricsServer::open(address).await?),
                None => None,
            };
            let metrics = metrics_server.as_ref().map(|server| server.metrics.clone());
            let environment = hook_environment(&spawner.preparer.host, &socket);
            let hooks = (!settings.hooks.is_empty())
                .then(|| Hooks::start(settings.hooks.clone(), environment, metrics.clone()));
            let observers = Observers { metrics, hooks };
            let registry = Registry::adopt(spawner, observers).await?;
            if let Some(server) = metrics_server {
                let registry = Arc::downgrade(&registry);
                let counts = move || registry.upgrade().map(|registry| registry.live_counts());
                tokio::spawn(server.serve(Arc::new(move || counts().unwrap_or_default())));
            }
            let mut term = watch(SignalKind::terminate())?;
            let mut interrupt = watch(SignalKind::interrupt())?;
            tracing::info!(socket = %socket.display(), state = %settings.state_dir.display(),
                engine = settings.engine.name(), privilege = settings.backend.name(),
                running = registry.list_running().len(), ended = registry.ended().len(), "listening");
            if arguments.background {
                process::release_stdio();
            }
            notify_systemd();
            registry.refill_shim_pool();
            registry.retention.send_replace(settings.retention);
            tokio::spawn(retention::run(registry.clone()));
            let daemon = Arc::new(DaemonState {
                registry,
                config,
                audit_log: Arc::new(audit_log),
                socket: socket.clone(),
                connections: Arc::new(Semaphore::new(server::MAX_CONNECTIONS as usize)),
                shutdown: watch::Sender::new(false),
            });
            tokio::spawn(daemon.clone().resume_interrupted());
            tokio::spawn(daemon.clone().autostart());
            let mut serving = Box::pin(server::run(&daemon, &listening));
            loop {
                tokio::select! {
                    () = &mut serving => {}
                    _ = term.recv() => tracing::info!("SIGTERM"),
                    _ = interrupt.recv() => tracing::info!("SIGINT"),
                    _ = hangup.recv() => {
                        if let Some(log) = &log {
                            log.reopen();
                        }
                        tracing::info!("SIGHUP");
                        tokio::spawn(reload(daemon.clone()));
                        continue;
                    }
                }
                break;
            }
            drop(serving);
            DaemonFile::remove(&settings.state_dir);
            // Removes the socket: no client must connect from now on.
            drop(listening);
            let running = server::shut_down(&daemon).await;
            tracing::info!(running, "stopped; running agents keep running, and the next daemon with this state directory adopts them");
            Ok(())
        });
    runtime.shutdown_timeout(POOL_SHUTDOWN_TIMEOUT);
    outcome
}

/// Reloads the settings file after SIGHUP; the outcome is logged and audited.
async fn reload(daemon: Arc<DaemonState>) {
    let call = Call::ReloadConfig(Empty {});
    let _ = handlers::handle(&daemon, Peer::daemon(), call).await;
}

/// Returns the environment of hooks: the base environment of agents, the variables for the desktop session of the daemon's
/// user, and the socket.
fn hook_environment(host: &HostEnv, socket: &Path) -> Vec<(String, String)> {
    let desktop = ["XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS"];
    let desktop = desktop
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?)));
    let socket = socket.display().to_string();
    let additional = desktop.chain([("COLIBRI_SOCKET".to_owned(), socket)]);
    host.with(&additional.collect()).into_iter().collect()
}

/// Reports to systemd that the daemon listens, if systemd waits for that (sd_notify(3)).
fn notify_systemd() {
    #[cfg(target_os = "linux")]
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(%error, "cannot report to systemd that the daemon listens");
    }
}

/// Installs the log subscriber; returns the log file of a daemon in the background.
fn install_log(
    arguments: &DaemonArguments,
    settings: &Settings,
) -> Result<Option<Arc<RotatedLog>>, StartError> {
    let filter = EnvFilter::try_from_env("COLIBRI_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_target(false)
        // The subscriber's message about a failed write goes to stderr, and panics if stderr fails too.
        .log_internal_errors(false);
    if arguments.background {
        let path = settings.state_dir.join("daemon.log");
        let log = Arc::new(RotatedLog::new(path, settings.log));
        log.open()
            .map_err(failed("open daemon.log in the state directory"))?;
        builder.with_writer(log.clone()).init();
        return Ok(Some(log));
    } else if arguments.log_format == LogFormat::Json {
        builder.json().with_writer(io::stderr).init();
    } else {
        builder.with_writer(io::stderr).init();
    }
    Ok(None)
}
