//! Which engine, backend and directories are used: flags over environment over file over defaults.
//!
//! The daemon and `colibri explain` must come to the same answer, so it is found here, once.

mod hook;
mod live;
mod metrics;

pub use hook::{Hook, HookError, HookSettings, STATES};
pub use metrics::{MetricsAddress, MetricsAddressError};

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use colibri_jail_core::{Bubblewrap, EngineRegistry, FreebsdJail, JailEngine};
use colibri_journal::{Fsync, JournalOptions};
use colibri_priv::{BackendRegistry, PrivBackend, PrivMode};
use colibri_sys::regular_file::is_executable;
use serde::{Deserialize, Serialize};

use crate::file::ConfigError;

/// Where the helper is looked for; the first is named where none is there.
const HELPER: &[&str] = &[
    "/usr/local/libexec/colibri-jail-helper",
    "/usr/libexec/colibri-jail-helper",
];
const DEFAULT_SEGMENT_BYTES: u64 = 64 << 20;
const MIN_SEGMENT_BYTES: u64 = 4096;
const DEFAULT_FSYNC_INTERVAL_MS: u64 = 1000;
const MAX_FSYNC_INTERVAL_MS: u64 = 3_600_000;
const DEFAULT_LOG_BYTES: u64 = 10 << 20;
const MIN_LOG_BYTES: u64 = 4096;
const DEFAULT_LOG_KEEP: u32 = 5;
const MAX_LOG_KEEP: u32 = 100;
/// Where bubblewrap is looked for; a service's `PATH` is not relied on.
const BWRAP: &[&str] = &["/usr/bin/bwrap", "/usr/local/bin/bwrap", "/bin/bwrap"];
/// Where Colibri's own programs are looked for when they are not beside the running one.
const LIBEXEC: &[&str] = &["/usr/local/libexec", "/usr/libexec", "/usr/lib/colibri"];

/// One source of settings: flags, environment or file. What it does not say is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PartialSettings {
    /// The daemon's socket.
    pub socket: Option<PathBuf>,
    /// Group that may use the socket, by name or number.
    pub socket_group: Option<String>,
    /// User, by name or number, whose daemon clients trust besides root's and their own. Read only by clients.
    pub daemon_user: Option<String>,
    /// The state directory.
    pub state_dir: Option<PathBuf>,
    /// Name of the privilege backend.
    pub privilege: Option<String>,
    /// The setuid helper.
    pub helper: Option<String>,
    /// Name of the engine.
    pub engine: Option<String>,
    /// The shim program.
    pub shim: Option<PathBuf>,
    /// The program between agents that may connect to some places only and those places.
    pub proxy: Option<PathBuf>,
    /// The cgroup in which agents get theirs.
    pub cgroup: Option<PathBuf>,
    /// Size at which a journal segment is closed, in bytes.
    pub segment_bytes: Option<u64>,
    /// How much of each output is kept at least, in bytes; whole segments before that are dropped.
    pub retain_bytes: Option<u64>,
    /// When output is forced onto the disk.
    pub fsync: Option<FsyncPolicy>,
    /// With `fsync = "interval"`: at most so long after it came, in milliseconds.
    pub fsync_interval_ms: Option<u64>,
    /// Where metrics can be read; see [`MetricsAddress`].
    pub metrics: Option<String>,
    /// Size at which `audit.jsonl` and `daemon.log` are rotated, in bytes.
    pub log_max_bytes: Option<u64>,
    /// Number of rotated files of each that are kept.
    pub log_keep: Option<u32>,
    /// Time for which ended agents are kept, like `30d`.
    pub retain_ended_for: Option<String>,
    /// Maximum number of ended agents that are kept.
    pub retain_ended_count: Option<u64>,
    /// Commands for changes of state.
    pub hook: Vec<HookSettings>,
}

/// The word for it; the interval is a setting of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FsyncPolicy {
    /// See [`Fsync::Never`].
    Never,
    /// See [`Fsync::Interval`].
    Interval,
    /// See [`Fsync::Always`].
    Always,
}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("settings file {path} cannot be read: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is no valid settings file.
    #[error("the settings file cannot be used:\n{0}")]
    File(#[from] ConfigError),
    /// There is no place for the state.
    #[error("no state directory is known: set COLIBRI_STATE_DIR or HOME, or give --state-dir")]
    NoStateDir,
    /// A segment must hold something.
    #[error("segment_bytes is {0}; give at least {MIN_SEGMENT_BYTES}")]
    SegmentBytes(u64),
    /// Nothing smaller than a segment is dropped.
    #[error(
        "retain_bytes is {retain}, less than a segment ({segment} bytes), and only whole segments are dropped; give at least {segment}, or a smaller segment_bytes"
    )]
    RetainBytes {
        /// `retain_bytes`.
        retain: u64,
        /// `segment_bytes`.
        segment: u64,
    },
    /// The interval would not be looked at.
    #[error(
        "fsync_interval_ms is set and would do nothing; set fsync = \"interval\" with it, or leave it out"
    )]
    IntervalUnused,
    /// No interval at all is another policy, and so is a very long one.
    #[error(
        "fsync_interval_ms is {0}; give 1 to {MAX_FSYNC_INTERVAL_MS}, or set fsync = \"always\" or \"never\" instead"
    )]
    IntervalRange(u64),
    /// `log_max_bytes` is too small.
    #[error("log_max_bytes is {0}; give at least {MIN_LOG_BYTES}")]
    LogBytes(u64),
    /// `log_keep` is too large.
    #[error("log_keep is {0}; give at most {MAX_LOG_KEEP}")]
    LogKeep(u32),
    /// `retain_ended_for` is not a valid time.
    #[error(
        "retain_ended_for is {text:?}: {problem}; give a time like \"30d\", \"12h\" or \"90m\""
    )]
    RetainEndedFor {
        /// What is set.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Metrics cannot be served there.
    #[error("metrics: {0}")]
    Metrics(MetricsAddressError),
    /// A hook cannot be run.
    #[error("[[hook]] number {number}: {source}")]
    Hook {
        /// Which one, from 1.
        number: usize,
        /// What is wrong with it.
        source: HookError,
    },
    /// An unknown engine.
    #[error("COLIBRI_JAIL_ENGINE: {0}")]
    Engine(colibri_jail_core::JailError),
    /// An unknown backend.
    #[error("COLIBRI_JAIL_PRIV_MODE: {0}")]
    Privilege(colibri_priv::PrivError),
}

impl PartialSettings {
    /// What the environment says; `lookup` gives a variable's value.
    #[must_use]
    pub fn from_env(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let lookup = |name: &str| lookup(name).filter(|value| !value.is_empty());
        Self {
            socket: lookup("COLIBRI_SOCKET").map(PathBuf::from),
            state_dir: lookup("COLIBRI_STATE_DIR").map(PathBuf::from),
            privilege: lookup("COLIBRI_JAIL_PRIV_MODE"),
            helper: lookup("COLIBRI_JAIL_HELPER"),
            engine: lookup("COLIBRI_JAIL_ENGINE"),
            shim: lookup("COLIBRI_SHIM").map(PathBuf::from),
            proxy: lookup("COLIBRI_PROXY").map(PathBuf::from),
            metrics: lookup("COLIBRI_METRICS"),
            ..Self::default()
        }
    }

    /// These settings, and those of `weaker` where these are silent.
    #[must_use]
    pub fn or(self, weaker: Self) -> Self {
        Self {
            socket: self.socket.or(weaker.socket),
            socket_group: self.socket_group.or(weaker.socket_group),
            daemon_user: self.daemon_user.or(weaker.daemon_user),
            state_dir: self.state_dir.or(weaker.state_dir),
            privilege: self.privilege.or(weaker.privilege),
            helper: self.helper.or(weaker.helper),
            engine: self.engine.or(weaker.engine),
            shim: self.shim.or(weaker.shim),
            proxy: self.proxy.or(weaker.proxy),
            cgroup: self.cgroup.or(weaker.cgroup),
            segment_bytes: self.segment_bytes.or(weaker.segment_bytes),
            retain_bytes: self.retain_bytes.or(weaker.retain_bytes),
            fsync: self.fsync.or(weaker.fsync),
            fsync_interval_ms: self.fsync_interval_ms.or(weaker.fsync_interval_ms),
            metrics: self.metrics.or(weaker.metrics),
            log_max_bytes: self.log_max_bytes.or(weaker.log_max_bytes),
            log_keep: self.log_keep.or(weaker.log_keep),
            retain_ended_for: self.retain_ended_for.or(weaker.retain_ended_for),
            retain_ended_count: self.retain_ended_count.or(weaker.retain_ended_count),
            hook: match self.hook.is_empty() {
                true => weaker.hook,
                false => self.hook,
            },
        }
    }

    /// Returns the state directory of a daemon with these settings.
    pub fn state_dir_or_default(&self, lookup: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
        let named = self.state_dir.clone();
        named.or_else(|| default_state_dir(&lookup))
    }

    /// The privilege backends that there are with these settings.
    pub fn backends(&self, make: impl FnOnce(&str) -> BackendRegistry) -> BackendRegistry {
        make(self.helper.as_deref().unwrap_or_else(|| default_helper()))
    }

    /// Returns the limits for log files.
    pub(crate) fn log(&self) -> Result<LogLimits, SettingsError> {
        let limits = LogLimits {
            max_bytes: self.log_max_bytes.unwrap_or(DEFAULT_LOG_BYTES),
            keep: self.log_keep.unwrap_or(DEFAULT_LOG_KEEP),
        };
        if limits.max_bytes < MIN_LOG_BYTES {
            Err(SettingsError::LogBytes(limits.max_bytes))
        } else if limits.keep > MAX_LOG_KEEP {
            Err(SettingsError::LogKeep(limits.keep))
        } else {
            Ok(limits)
        }
    }

    /// Returns the retention of ended agents.
    pub(crate) fn retention(&self) -> Result<Retention, SettingsError> {
        let age = self.retain_ended_for.as_deref().map(|text| {
            age(text).map_err(|problem| SettingsError::RetainEndedFor {
                text: text.to_owned(),
                problem,
            })
        });
        Ok(Retention {
            age: age.transpose()?,
            count: self.retain_ended_count,
        })
    }

    /// How journals are kept. A journal that keeps little has small segments, as whole ones are dropped.
    pub(crate) fn journal(&self) -> Result<JournalOptions, SettingsError> {
        let segment_bytes = match (self.segment_bytes, self.retain_bytes) {
            (Some(bytes), _) => bytes,
            (None, Some(retain)) => (retain / 8).clamp(MIN_SEGMENT_BYTES, DEFAULT_SEGMENT_BYTES),
            (None, None) => DEFAULT_SEGMENT_BYTES,
        };
        if segment_bytes < MIN_SEGMENT_BYTES {
            return Err(SettingsError::SegmentBytes(segment_bytes));
        }
        if let Some(retain) = self.retain_bytes.filter(|retain| *retain < segment_bytes) {
            return Err(SettingsError::RetainBytes {
                retain,
                segment: segment_bytes,
            });
        }
        let fsync = match (self.fsync, self.fsync_interval_ms) {
            (Some(FsyncPolicy::Interval), ms) => match ms.unwrap_or(DEFAULT_FSYNC_INTERVAL_MS) {
                ms @ 1..=MAX_FSYNC_INTERVAL_MS => Fsync::Interval(Duration::from_millis(ms)),
                ms => return Err(SettingsError::IntervalRange(ms)),
            },
            (_, Some(_)) => return Err(SettingsError::IntervalUnused),
            (Some(FsyncPolicy::Always), None) => Fsync::Always,
            (Some(FsyncPolicy::Never) | None, None) => Fsync::Never,
        };
        Ok(JournalOptions {
            segment_bytes,
            retain_bytes: self.retain_bytes,
            fsync,
            ..JournalOptions::default()
        })
    }
}

/// Limits for log files: size of rotation, and number of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLimits {
    /// Maximum size of a file, in bytes.
    pub max_bytes: u64,
    /// Number of rotated files that are kept besides the current one.
    pub keep: u32,
}

/// Retention of ended agents; without both limits all are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retention {
    /// Agents that ended longer ago than this are removed.
    pub age: Option<Duration>,
    /// Maximum number of ended agents; the oldest are removed.
    pub count: Option<u64>,
}

/// Parses a time like `30d` or `1h 30m`; a day has 24 hours.
fn age(text: &str) -> Result<Duration, String> {
    let span: jiff::Span = text
        .parse()
        .map_err(|error: jiff::Error| error.to_string())?;
    let duration = span
        .to_duration(jiff::SpanRelativeTo::days_are_24_hours())
        .map_err(|error| error.to_string())?;
    Duration::try_from(duration).map_err(|error| error.to_string())
}

impl PartialSettings {
    /// Returns the bubblewrap engine with the paths of its programs on this host.
    fn bubblewrap(&self) -> Bubblewrap {
        let program = BWRAP
            .iter()
            .find(|path| is_executable(Path::new(path)))
            .and_then(|path| path.parse().ok());
        let engine = program.map_or_else(Bubblewrap::default, Bubblewrap::new);
        let proxy = self.proxy.clone().or_else(|| find("colibri-proxy"));
        match proxy.and_then(|path| path.to_str()?.parse().ok()) {
            Some(proxy) => engine.with_proxy(proxy),
            None => engine,
        }
    }
}

/// Settings that can be used.
#[derive(Clone)]
pub struct Settings {
    /// The state directory.
    pub state_dir: PathBuf,
    /// The engine, with the place of its program on this host.
    pub engine: Arc<dyn JailEngine>,
    /// The privilege backend.
    pub backend: Arc<dyn PrivBackend>,
    /// The shim program.
    pub shim: PathBuf,
    /// How output is kept.
    pub journal: JournalOptions,
    /// Where metrics are served.
    pub metrics: Option<MetricsAddress>,
    /// When log files are rotated.
    pub log: LogLimits,
    /// Which ended agents are kept.
    pub retention: Retention,
    /// Commands for changes of state.
    pub hooks: Vec<Hook>,
    /// Where settings files are, which may hold secrets.
    settings_directories: Vec<PathBuf>,
}

impl Settings {
    /// Fills in defaults and looks names up. `backends` makes the registry, given the helper's path.
    ///
    /// # Errors
    /// A name is unknown (the message lists the known ones), or a value is out of range.
    pub fn resolve(
        partial: &PartialSettings,
        lookup: impl Fn(&str) -> Option<String>,
        backends: impl FnOnce(&str) -> BackendRegistry,
    ) -> Result<Self, SettingsError> {
        let mut engines = EngineRegistry::builtin();
        engines.register(Arc::new(partial.bubblewrap()));
        let default = if cfg!(target_os = "freebsd") {
            FreebsdJail::NAME
        } else {
            Bubblewrap::NAME
        };
        let engine = engines
            .by_name(partial.engine.as_deref().unwrap_or(default))
            .map_err(SettingsError::Engine)?;
        let mode = match &partial.privilege {
            Some(name) => PrivMode::parse(name).map_err(SettingsError::Privilege)?,
            None => PrivMode::default_for(&*engine),
        };
        let registry = partial.backends(backends);
        let backend = registry
            .get(mode.as_str())
            .map_err(SettingsError::Privilege)?;
        let journal = partial.journal()?;
        let log = partial.log()?;
        let retention = partial.retention()?;
        let metrics = partial.metrics.as_deref().map(str::parse).transpose();
        let metrics = metrics.map_err(SettingsError::Metrics)?;
        let hooks = checked(&partial.hook)?;
        let state_dir = partial
            .state_dir_or_default(&lookup)
            .ok_or(SettingsError::NoStateDir)?;
        let shim = partial.shim.clone().unwrap_or_else(|| {
            find("colibri-shim").unwrap_or_else(|| Path::new(LIBEXEC[0]).join("colibri-shim"))
        });
        Ok(Self {
            state_dir,
            engine,
            backend,
            shim,
            journal,
            metrics,
            log,
            retention,
            hooks,
            settings_directories: crate::file::default_paths(&lookup)
                .iter()
                .filter_map(|file| file.parent().map(Path::to_owned))
                .collect(),
        })
    }

    /// Returns the directories that no sandbox may show: those of the daemon's state, sockets and settings. `socket` is
    /// the daemon's.
    #[must_use]
    pub fn private_directories(&self, socket: &Path) -> Vec<PathBuf> {
        let mut directories = vec![self.state_dir.clone(), PathBuf::from("/run/user")];
        directories.extend(socket.parent().map(Path::to_owned));
        if let Some(MetricsAddress::Unix(socket)) = &self.metrics {
            directories.extend(socket.parent().map(Path::to_owned));
        }
        directories.extend(self.settings_directories.iter().cloned());
        directories
    }
}

/// `/var/db/colibri` for root, else under the user's own state directory.
fn default_state_dir(lookup: &impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let lookup = |name: &str| {
        lookup(name)
            .filter(|value| value.starts_with('/'))
            .map(PathBuf::from)
    };
    if let Some(state) = lookup("XDG_STATE_HOME") {
        return Some(state.join("colibri"));
    }
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from("/var/db/colibri"));
    }
    Some(lookup("HOME")?.join(".local/state/colibri"))
}

/// Hooks that can be run.
///
/// # Errors
/// One cannot; which, and why.
pub(crate) fn checked(hooks: &[HookSettings]) -> Result<Vec<Hook>, SettingsError> {
    let hooks = (1..).zip(hooks).map(|(number, hook)| {
        let failed = |source| SettingsError::Hook { number, source };
        hook.check().map_err(failed)
    });
    hooks.collect()
}

fn default_helper() -> &'static str {
    let there = HELPER.iter().find(|path| is_executable(Path::new(path)));
    there.or(HELPER.first()).copied().unwrap_or_default()
}

/// A program of Colibri's beside the running one, or in the libexec of the same prefix, else where packages put it.
fn find(program: &str) -> Option<PathBuf> {
    let near = std::env::current_exe().ok().and_then(|exe| {
        let bin = exe.parent()?;
        Some([bin.to_owned(), bin.parent()?.join("libexec")])
    });
    near.into_iter()
        .flatten()
        .chain(LIBEXEC.iter().map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|path| is_executable(path))
}

#[cfg(test)]
mod tests;
