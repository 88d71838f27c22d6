//! From arguments to a running server: settings, locks, adoption, socket, and the way down.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use colibri_config::ConfigFile;
use colibri_config::{PartialSettings, Settings, SettingsError};
use colibri_prepare::{Cgroups, HostEnv, Preparer};
use colibri_priv::BackendRegistry;
use colibri_spawner::{SpawnError, Spawner, StateDir};
use colibri_sys::daemon::{DAEMON_LOCK, DaemonFile, default_socket};
use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::connection::server::Server;
use crate::daemon::audit::Audit;
use crate::daemon::config::Configuration;
use crate::hooks::Hooks;
use crate::metrics::{Metrics, MetricsError, Served};
use crate::registry::retention;
use crate::registry::{Observers, Registry};
use crate::rotation::RotatedLog;
use crate::socket::{Listening, SocketError};
use crate::{pool, times};

/// Runs AI coding agents unattended, each confined in a jail.
///
/// Settings come from flags, then the environment (COLIBRI_SOCKET, COLIBRI_STATE_DIR,
/// COLIBRI_JAIL_PRIV_MODE, COLIBRI_JAIL_HELPER, COLIBRI_JAIL_ENGINE, COLIBRI_SHIM, COLIBRI_METRICS), then the config file.
/// SIGHUP has it read the config file again. Ends on SIGTERM, SIGINT or a shutdown request; agents go on under their shims, and the next daemon
/// with the same state directory adopts them.
#[derive(Debug, Clone, Parser)]
#[command(name = "colibri-daemon", version)]
pub struct Arguments {
    /// Listen on this Unix socket
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Keep agents in this directory
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Read settings from this TOML file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Serve metrics here: unix:PATH, or a loopback address with a port, like 127.0.0.1:9464
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<String>,
    /// How log lines are written to stderr; COLIBRI_LOG sets what is logged (default: info)
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Leave the session of the caller and log to daemon.log in the state directory
    #[arg(long, hide = true)]
    pub background: bool,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Longest wait at the end for blocking work that is still running.
const LAST_WORK: Duration = Duration::from_secs(1);

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    #[error(transparent)]
    State(#[from] SpawnError),
    #[error(
        "state directory {directory} is used by another colibri-daemon{which}; stop that one, or name another directory with --state-dir"
    )]
    StateInUse { directory: PathBuf, which: String },
    #[error(
        "the threads of the daemon cannot be started: {0}; end processes of this user, or raise the limit of processes: ulimit -u, or TasksMax= in the systemd unit"
    )]
    Threads(io::Error),
    #[error("{doing} failed: {source}")]
    System {
        doing: &'static str,
        source: io::Error,
    },
}

impl StartError {
    fn system(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { doing, source }
    }
}

/// The whole program: parses the arguments and serves until it is told to end. `backends` makes the
/// privilege backends, given the path of the helper.
pub fn main(backends: impl FnOnce(&str) -> BackendRegistry) -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments, backends) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "colibri-daemon: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(
    arguments: &Arguments,
    backends: impl FnOnce(&str) -> BackendRegistry,
) -> Result<(), StartError> {
    colibri_sys::signals::reset_inherited();
    // With a handler, a write beyond RLIMIT_FSIZE fails with EFBIG instead of ending the daemon.
    colibri_sys::signals::catch(Signal::XFSZ);
    // Files of the daemon are readable only by its user; agents have their own umask.
    rustix::process::umask(Mode::from_raw_mode(0o077));
    let arguments = &if arguments.background {
        detach(arguments).map_err(StartError::system("detaching from the caller"))?
    } else {
        arguments.clone()
    };
    let lookup = |name: &str| std::env::var(name).ok();
    let flags = PartialSettings {
        socket: arguments.socket.clone(),
        state_dir: arguments.state_dir.clone(),
        metrics: arguments.metrics.clone(),
        ..PartialSettings::default()
    };
    let file = ConfigFile::read(arguments.config.as_deref(), lookup)?;
    let stronger = flags.or(PartialSettings::from_env(lookup));
    let partial = stronger.clone().or(file.settings.clone());
    let backends = partial.backends(backends);
    if stronger.privilege.is_none() {
        file.check_privilege(&backends)
            .map_err(SettingsError::from)?;
    }
    let settings = Settings::resolve(&partial, lookup, |_| backends.clone())?;
    let socket = partial
        .socket
        .clone()
        .unwrap_or_else(|| default_socket(lookup, Some(&settings.state_dir)));
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let mut preparer = Preparer {
        engine: settings.engine.clone(),
        backend: settings.backend.clone(),
        private_directories: settings.private_directories(&socket),
        host: HostEnv::from_variables(variables),
        cgroups: Cgroups::claim(partial.cgroup.as_deref()),
        soft_open_files: None,
    };
    let raised = raise_open_files();
    StateDir::new(settings.state_dir.clone()).open()?;
    let log = log_to(arguments, &settings)?;
    warn_of_low_priority();
    match raised {
        Ok(before) => preparer.soft_open_files = before,
        Err(error) => {
            tracing::warn!(%error, "the soft limit of open files is not raised: there can be as many running agents as it allows")
        }
    }
    let mut spawner = Spawner::new(preparer, settings.state_dir.clone(), settings.shim.clone());
    spawner.journal = settings.journal;
    let _lock = lock_state(&settings)?;
    // A killed daemon leaves its record behind.
    DaemonFile::remove(&settings.state_dir);
    let config = Configuration::new(arguments.config.clone(), stronger, backends, file);
    let audit = Audit::new(&settings.state_dir, settings.log);
    let runtime = pool::runtime().map_err(StartError::Threads)?;
    let outcome = runtime.block_on(async {
            let listening = Listening::open(&socket, partial.socket_group.as_deref()).await?;
            record(&settings, &socket);
            let watch = |kind| signal(kind).map_err(StartError::system("watching signals"));
            // Before anything that takes its time: a reload must not end the daemon.
            let mut hangup = watch(SignalKind::hangup())?;
            let served = match &settings.metrics {
                Some(address) => Some(Served::open(address).await?),
                None => None,
            };
            let metrics = served.as_ref().map(|_| Arc::new(Metrics::new()));
            let environment = hook_environment(&spawner.preparer.host, &socket);
            let hooks = (!settings.hooks.is_empty())
                .then(|| Hooks::new(settings.hooks.clone(), environment, metrics.clone()));
            let observers = Observers { metrics: metrics.clone(), hooks };
            let (registry, adopted) = Registry::adopt(spawner, observers).await?;
            if let (Some(served), Some(metrics)) = (served, metrics) {
                metrics.watch(&registry);
                tokio::spawn(async move { served.serve(&metrics).await });
            }
            let mut term = watch(SignalKind::terminate())?;
            let mut interrupt = watch(SignalKind::interrupt())?;
            tracing::info!(socket = %socket.display(), state = %settings.state_dir.display(),
                engine = settings.engine.name(), privilege = settings.backend.name(),
                running = adopted.running, ended = adopted.ended, "listening");
            if arguments.background {
                release_stdio();
            }
            tell_systemd();
            registry.start_ahead();
            registry.retention.set(settings.retention);
            tokio::spawn(retention::keep(registry.clone()));
            let server = Arc::new(Server::new(registry, config, audit, socket.clone(), listening.group));
            tokio::spawn(server.clone().autostart());
            let mut serving = Box::pin(server.clone().accept(&listening.listener));
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
                        tokio::spawn(server.clone().reload_alone());
                        continue;
                    }
                }
                break;
            }
            drop(serving);
            DaemonFile::remove(&settings.state_dir);
            // Nobody must find a socket at which nobody listens.
            drop(listening);
            let running = server.shut_down().await;
            tracing::info!(running, "ended; running agents go on under their shims, and the next daemon with this state directory adopts them");
            Ok(())
        });
    // Blocking work on a file system that does not answer may never end.
    runtime.shutdown_timeout(LAST_WORK);
    outcome
}

/// Directs stdio to /dev/null: the caller of a daemon in the background reads its stderr only until it listens.
fn release_stdio() {
    if let Ok(null) = OpenOptions::new().read(true).write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
}

/// Leaves the session, the working directory and the scheduling priority of the caller, so that its directory can be
/// unmounted. Returns the arguments with absolute paths. Resource limits stay: an ordinary user cannot raise a limit
/// that the caller has lowered.
fn detach(arguments: &Arguments) -> io::Result<Arguments> {
    // Fails only if the process is already a session leader.
    let _ = rustix::process::setsid();
    let absolute = |path: &Option<PathBuf>| path.as_ref().map(std::path::absolute).transpose();
    let detached = Arguments {
        socket: absolute(&arguments.socket)?,
        state_dir: absolute(&arguments.state_dir)?,
        config: absolute(&arguments.config)?,
        ..arguments.clone()
    };
    std::env::set_current_dir("/")?;
    // An ordinary user may not lower the nice value (getpriority(2)); a warning is logged later.
    let _ = rustix::process::setpriority_process(None, 0);
    Ok(detached)
}

fn warn_of_low_priority() {
    if let Ok(nice) = rustix::process::getpriority_process(None)
        && nice > 0
    {
        tracing::warn!(
            nice,
            "the daemon and its agents run at a low priority, inherited from what started the daemon; start it with nice 0 to change that"
        );
    }
}

/// Raises the soft limit of open files to the hard one (setrlimit(2)): every running agent takes a descriptor.
/// Gives what the limit was, for the agents, if it was another: select(2) cannot do with descriptors from 1024 on,
/// so programs expect a low limit and raise it themselves where they need more.
fn raise_open_files() -> io::Result<Option<u64>> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return Ok(None);
    }
    let current_is_hard = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, current_is_hard)?;
    Ok(current)
}

/// What hooks see of the environment: what agents do, the way to the desktop of the daemon's user, and the daemon.
fn hook_environment(host: &HostEnv, socket: &Path) -> Vec<(String, String)> {
    let desktop = ["XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS"];
    let desktop = desktop
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?)));
    let socket = socket.display().to_string();
    let own = desktop.chain([("COLIBRI_SOCKET".to_owned(), socket)]);
    host.with(&own.collect()).into_iter().collect()
}

/// Says that the daemon listens, where systemd has started it and waits for that (sd_notify(3)).
fn tell_systemd() {
    #[cfg(target_os = "linux")]
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(%error, "systemd is not told that the daemon listens");
    }
}

/// Installs the log subscriber; returns the log file if the log goes to one.
fn log_to(arguments: &Arguments, settings: &Settings) -> Result<Option<RotatedLog>, StartError> {
    let filter = EnvFilter::try_from_env("COLIBRI_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_target(false)
        // A message on stderr about a failed write panics where stderr fails, too.
        .log_internal_errors(false);
    if arguments.background {
        let log = RotatedLog::new(settings.state_dir.join("daemon.log"), settings.log);
        log.open().map_err(StartError::system(
            "opening daemon.log in the state directory",
        ))?;
        let writer = log.clone();
        builder.with_writer(move || writer.clone()).init();
        return Ok(Some(log));
    } else if arguments.log_format == LogFormat::Json {
        builder.json().with_writer(io::stderr).init();
    } else {
        builder.with_writer(io::stderr).init();
    }
    Ok(None)
}

/// Writes `daemon.json`, by which clients that know only the state directory find the socket.
fn record(settings: &Settings, socket: &Path) {
    let record = DaemonFile {
        pid: rustix::process::getpid().as_raw_nonzero().get(),
        socket: socket.to_owned(),
        started_at: times::from_ms(times::now_ms()),
    };
    if let Err(error) = record.write(&settings.state_dir) {
        tracing::warn!(%error, "cannot write daemon.json in the state directory; clients must be told the socket");
    }
}

/// One daemon a state directory: two would both answer for the same agents.
fn lock_state(settings: &Settings) -> Result<File, StartError> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(settings.state_dir.join(DAEMON_LOCK))
        .map_err(StartError::system(
            "opening daemon.lock in the state directory",
        ))?;
    if crate::socket::lock(&file).map_err(StartError::system("locking the state directory"))? {
        Ok(file)
    } else {
        let running = DaemonFile::of_running(&settings.state_dir);
        let which =
            running.map(|other| format!(" (pid {}, socket {})", other.pid, other.socket.display()));
        Err(StartError::StateInUse {
            directory: settings.state_dir.clone(),
            which: which.unwrap_or_default(),
        })
    }
}
