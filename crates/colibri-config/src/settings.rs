//! Resolution of settings: flags take precedence over the environment, the settings file and the defaults, in this
//! order. The daemon and `colibri explain` share it.

mod defaults;
mod hook;
mod metrics;
mod partial;

pub use defaults::Defaults;
pub use hook::{Hook, HookError, HookSettings};
pub use metrics::{MetricsAddress, MetricsAddressError};
pub use partial::{PartialSettings, SettingsChanges};

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use colibri_jail_core::{Bubblewrap, EngineRegistry, FreebsdJail, JailEngine, JailError, JailPath};
use colibri_journal::{Fsync, JournalOptions};
use colibri_priv::{BackendRegistry, PrivBackend, PrivError};
use colibri_sys::regular_file::is_executable;
use serde::Deserialize;

use crate::file::ConfigError;

/// Paths at which the helper is searched; the first is the default if none exists.
const HELPER_PATHS: &[&str] = &[
    "/usr/local/libexec/colibri-jail-helper",
    "/usr/libexec/colibri-jail-helper",
];
/// Default of the newest bytes that are kept of each output stream: 1 GiB for an agent.
const DEFAULT_RETAIN_BYTES: u64 = 512 << 20;
/// Default size at which a journal segment is closed, in bytes.
const DEFAULT_SEGMENT_BYTES: u64 = 64 << 20;
/// Minimum of `segment_bytes`.
const MIN_SEGMENT_BYTES: u64 = 4096;
/// Default interval of syncs, in milliseconds.
const DEFAULT_FSYNC_INTERVAL_MS: u64 = 1000;
/// Maximum of `fsync_interval_ms`: one hour.
const MAX_FSYNC_INTERVAL_MS: u64 = 3_600_000;
/// Default size at which a log file is rotated, in bytes.
const DEFAULT_LOG_BYTES: u64 = 10 << 20;
/// Minimum of `log_max_bytes`.
const MIN_LOG_BYTES: u64 = 4096;
/// Default number of rotated files that are kept.
const DEFAULT_LOG_KEEP: u32 = 5;
/// Maximum of `log_keep`.
const MAX_LOG_KEEP: u32 = 100;
/// Paths at which bubblewrap is searched. The `PATH` of a service may lack its directory.
const BWRAP_PATHS: &[&str] = &["/usr/bin/bwrap", "/usr/local/bin/bwrap", "/bin/bwrap"];
/// Directories of Colibri's programs, searched after the directory of the running program.
const LIBEXEC: &[&str] = &["/usr/local/libexec", "/usr/libexec", "/usr/lib/colibri"];

/// When output is synced to disk. The interval is a separate setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FsyncPolicy {
    /// See [`Fsync::Never`].
    Never,
    /// See [`Fsync::Interval`].
    Interval,
    /// See [`Fsync::Always`].
    Always,
}

/// Why settings are invalid.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("cannot read settings file {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The file contains mistakes.
    #[error("the settings file is invalid:\n{0}")]
    File(#[from] ConfigError),
    /// Neither a setting nor the environment determines the state directory.
    #[error(
        "cannot determine the state directory; set COLIBRI_STATE_DIR or HOME, or pass --state-dir"
    )]
    NoStateDir,
    /// A value is out of range, or contradicts another setting.
    #[error("{message}")]
    Value {
        /// The name of the setting.
        setting: &'static str,
        /// Cause and hint.
        message: String,
    },
    /// The engine is unknown.
    #[error("COLIBRI_JAIL_ENGINE: {0}")]
    Engine(#[from] JailError),
    /// The privilege backend is unknown.
    #[error("COLIBRI_JAIL_PRIV_MODE: {0}")]
    Privilege(#[from] PrivError),
}

/// Returns the error for the value of a setting.
fn invalid(setting: &'static str, message: impl Into<String>) -> SettingsError {
    let message = message.into();
    SettingsError::Value { setting, message }
}

impl PartialSettings {
    /// Returns the settings of the environment; `lookup` returns the value of a variable.
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

    /// Returns the state directory of a daemon with these settings.
    pub fn state_dir_or_default(&self, lookup: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
        let named = self.state_dir.clone();
        named.or_else(|| default_state_dir(&lookup))
    }

    /// Returns the limits for log files.
    pub(crate) fn log(&self) -> Result<LogLimits, SettingsError> {
        let max_bytes = self.log_max_bytes.unwrap_or(DEFAULT_LOG_BYTES);
        let keep = self.log_keep.unwrap_or(DEFAULT_LOG_KEEP);
        if max_bytes < MIN_LOG_BYTES {
            let message = format!("log_max_bytes is {max_bytes}; set at least {MIN_LOG_BYTES}");
            return Err(invalid("log_max_bytes", message));
        }
        if keep > MAX_LOG_KEEP {
            let message = format!("log_keep is {keep}; set at most {MAX_LOG_KEEP}");
            return Err(invalid("log_keep", message));
        }
        Ok(LogLimits { max_bytes, keep })
    }

    /// Returns the retention of ended agents.
    pub(crate) fn retention(&self) -> Result<Retention, SettingsError> {
        let age = self.retain_ended_for.as_deref().map(|text| {
            age(text).map_err(|error| {
                invalid("retain_ended_for", format!(
                    "retain_ended_for is {text:?}: {error}; set a time like \"30d\", \"12h\" or \"90m\""
                ))
            })
        });
        Ok(Retention {
            age: age.transpose()?,
            count: self.retain_ended_count,
        })
    }

    /// Returns the address of the metrics endpoint.
    pub(crate) fn metrics_address(&self) -> Result<Option<MetricsAddress>, SettingsError> {
        let address = self.metrics.as_deref().map(str::parse).transpose();
        address.map_err(|problem: MetricsAddressError| {
            invalid("metrics", format!("metrics: {problem}"))
        })
    }

    /// Returns the validated hooks. An error names the number of the hook.
    pub(crate) fn hooks(&self) -> Result<Vec<Hook>, SettingsError> {
        let hooks = (1..).zip(self.hook.iter().flatten());
        let validate = |(number, hook): (usize, &HookSettings)| {
            hook.validate()
                .map_err(|problem| invalid("hook", format!("[[hook]] number {number}: {problem}")))
        };
        hooks.map(validate).collect()
    }

    /// Returns the journal options. Without `segment_bytes`, a segment is an eighth of `retain_bytes`, because only
    /// whole segments are deleted. A `retain_bytes` of 0 keeps everything.
    pub(crate) fn journal(&self) -> Result<JournalOptions, SettingsError> {
        let named = self.retain_bytes.filter(|retain| *retain > 0);
        let segment_bytes = match (self.segment_bytes, named) {
            (Some(bytes), _) => bytes,
            (None, Some(retain)) => (retain / 8).clamp(MIN_SEGMENT_BYTES, DEFAULT_SEGMENT_BYTES),
            (None, None) => DEFAULT_SEGMENT_BYTES,
        };
        if segment_bytes < MIN_SEGMENT_BYTES {
            return Err(invalid(
                "segment_bytes",
                format!("segment_bytes is {segment_bytes}; set at least {MIN_SEGMENT_BYTES}"),
            ));
        }
        if let Some(retain) = named.filter(|retain| *retain < segment_bytes) {
            return Err(invalid(
                "retain_bytes",
                format!(
                    "retain_bytes is {retain}, less than a segment ({segment_bytes} bytes), and only whole segments are deleted; set at least {segment_bytes}, or a smaller segment_bytes"
                ),
            ));
        }
        let fsync = match (self.fsync, self.fsync_interval_ms) {
            (Some(FsyncPolicy::Interval), ms) => match ms.unwrap_or(DEFAULT_FSYNC_INTERVAL_MS) {
                ms @ 1..=MAX_FSYNC_INTERVAL_MS => Fsync::Interval(Duration::from_millis(ms)),
                ms => {
                    return Err(invalid(
                        "fsync_interval_ms",
                        format!(
                            "fsync_interval_ms is {ms}; set 1 to {MAX_FSYNC_INTERVAL_MS}, or set fsync = \"always\" or \"never\" instead"
                        ),
                    ));
                }
            },
            (_, Some(_)) => {
                return Err(invalid(
                    "fsync_interval_ms",
                    "fsync_interval_ms has no effect without fsync = \"interval\"; set fsync = \"interval\", or remove fsync_interval_ms",
                ));
            }
            (Some(FsyncPolicy::Always), None) => Fsync::Always,
            (Some(FsyncPolicy::Never) | None, None) => Fsync::Never,
        };
        Ok(JournalOptions {
            segment_bytes,
            retain_bytes: match self.retain_bytes {
                None => Some(DEFAULT_RETAIN_BYTES.max(segment_bytes)),
                Some(_) => named,
            },
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
fn age(text: &str) -> Result<Duration, jiff::Error> {
    let span: jiff::Span = text.parse()?;
    span.to_duration(jiff::SpanRelativeTo::days_are_24_hours())?
        .try_into()
}

/// The engines and the privilege backends that settings can name.
#[derive(Clone)]
pub struct Registries {
    /// The engines. Settings replace [`Bubblewrap`] by one with the paths of its programs on this host.
    pub engines: EngineRegistry,
    /// Creates the privilege backends for the path of the helper.
    pub backends: fn(&str) -> BackendRegistry,
}

/// The engines and the privilege backends of Colibri.
impl Default for Registries {
    fn default() -> Self {
        Self {
            engines: EngineRegistry::builtin(),
            backends: BackendRegistry::builtin,
        }
    }
}

impl Registries {
    /// Returns an error for each unknown engine or privilege backend in a file's settings that no override replaces.
    pub(crate) fn unknown_names(
        &self,
        file: &PartialSettings,
        overrides: &PartialSettings,
    ) -> Vec<SettingsError> {
        let engine = file.engine.as_deref();
        let engine_error = engine
            .filter(|_| overrides.engine.is_none())
            .and_then(|name| self.engines.get(name).err())
            .map(|error| invalid("engine", error.to_string()));
        let privilege = file.privilege.as_deref();
        // Any path of the helper: only the names of the backends are used.
        let privilege_error = privilege
            .filter(|_| overrides.privilege.is_none())
            .and_then(|name| (self.backends)(HELPER_PATHS[0]).get(name).err())
            .map(|error| invalid("privilege", error.to_string()));
        engine_error.into_iter().chain(privilege_error).collect()
    }

    /// Returns the engine that the settings name, or the default of this system.
    pub(crate) fn engine(
        &self,
        partial: &PartialSettings,
    ) -> Result<Arc<dyn JailEngine>, JailError> {
        let mut engines = self.engines.clone();
        engines.replace(Arc::new(partial.bubblewrap()));
        engines.replace(Arc::new(partial.freebsd()));
        let default = match cfg!(target_os = "freebsd") {
            true => FreebsdJail::NAME,
            false => Bubblewrap::NAME,
        };
        engines.get(partial.engine.as_deref().unwrap_or(default))
    }

    /// Returns the privilege backend that the settings name, or the default of the engine.
    pub(crate) fn backend(
        &self,
        partial: &PartialSettings,
        engine: &dyn JailEngine,
    ) -> Result<Arc<dyn PrivBackend>, PrivError> {
        let default = BackendRegistry::default_name(engine);
        let name = partial.privilege.as_deref().unwrap_or(default);
        BackendRegistry::check_name(name)?;
        (self.backends)(partial.helper()).get(name)
    }
}

impl PartialSettings {
    /// Returns the path of the helper.
    fn helper(&self) -> &str {
        let installed = || first_executable(HELPER_PATHS).unwrap_or(HELPER_PATHS[0]);
        self.helper.as_deref().unwrap_or_else(installed)
    }

    /// Returns the bubblewrap engine with the paths of its programs on this host.
    fn bubblewrap(&self) -> Bubblewrap {
        let program = first_executable(BWRAP_PATHS).and_then(|path| path.parse().ok());
        let engine = program.map_or_else(Bubblewrap::default, Bubblewrap::new);
        let sandbox = find_program("colibri-sandbox")
            .unwrap_or_else(|| Path::new(LIBEXEC[0]).join("colibri-sandbox"));
        let engine = match sandbox.to_str().and_then(|path| path.parse().ok()) {
            Some(sandbox) => engine.with_sandbox(sandbox, libraries()),
            None => engine,
        };
        match self.proxy() {
            Some(proxy) => engine.with_proxy(proxy),
            None => engine,
        }
    }

    /// Returns the freebsd engine with the paths of its programs on this host.
    fn freebsd(&self) -> FreebsdJail {
        let engine = FreebsdJail::new(self.helper());
        match self.proxy() {
            Some(proxy) => engine.with_proxy(proxy),
            None => engine,
        }
    }

    /// Returns the path of the proxy, if it is installed.
    fn proxy(&self) -> Option<JailPath> {
        let proxy = self.proxy.clone().or_else(|| find_program("colibri-proxy"));
        proxy.and_then(|path| path.to_str()?.parse().ok())
    }
}

/// Resolved settings.
#[derive(Clone)]
pub struct Settings {
    /// The state directory.
    pub state_dir: PathBuf,
    /// The engine, with the path of its program on this host.
    pub engine: Arc<dyn JailEngine>,
    /// The privilege backend.
    pub backend: Arc<dyn PrivBackend>,
    /// The shim program.
    pub shim: PathBuf,
    /// The adapter for agents whose protocol has sessions, if it is installed.
    pub adapter: Option<PathBuf>,
    /// Options of the agents' journals.
    pub journal: JournalOptions,
    /// Address of the metrics endpoint.
    pub metrics: Option<MetricsAddress>,
    /// Rotation of log files.
    pub log: LogLimits,
    /// Retention of ended agents.
    pub retention: Retention,
    /// Commands that run when the state of an agent changes.
    pub hooks: Vec<Hook>,
    /// Directories of settings files, which may contain secrets.
    settings_directories: Vec<PathBuf>,
}

impl Settings {
    /// Resolves settings: fills gaps with defaults and finds programs.
    ///
    /// # Errors
    /// A name is unknown (the message lists the known names), or a value is out of range.
    pub fn resolve(
        partial: &PartialSettings,
        lookup: impl Fn(&str) -> Option<String>,
        registries: &Registries,
    ) -> Result<Self, SettingsError> {
        let engine = registries.engine(partial)?;
        let backend = registries.backend(partial, &*engine)?;
        let journal = partial.journal()?;
        let log = partial.log()?;
        let retention = partial.retention()?;
        let metrics = partial.metrics_address()?;
        let hooks = partial.hooks()?;
        let state_dir = partial
            .state_dir_or_default(&lookup)
            .ok_or(SettingsError::NoStateDir)?;
        let shim = partial.shim.clone().unwrap_or_else(|| {
            find_program("colibri-shim")
                .unwrap_or_else(|| Path::new(LIBEXEC[0]).join("colibri-shim"))
        });
        Ok(Self {
            state_dir,
            engine,
            backend,
            shim,
            adapter: find_program("colibri-adapter"),
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

    /// Returns the directories that every sandbox masks: the daemon's state, the directories of its sockets, and those of
    /// settings files. `socket` is the daemon's socket.
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

/// Returns `/var/db/colibri` for root, and a directory in the user's state directory for others.
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

/// Returns the dynamic linker and the libraries of this program, which those of colibri-sandbox equal, the linker first.
fn libraries() -> Vec<JailPath> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let paths = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5));
    let is_library = |path: &&str| path.starts_with('/') && path.contains(".so");
    let mut libraries: Vec<JailPath> = paths
        .filter(is_library)
        .filter_map(|path| path.parse().ok())
        .collect();
    let is_linker = |path: &JailPath| {
        path.as_str()
            .rsplit('/')
            .next()
            .is_some_and(|name| name.starts_with("ld-"))
    };
    libraries.sort_by_key(|path| (!is_linker(path), path.clone()));
    libraries.dedup();
    libraries
}

fn first_executable(paths: &[&'static str]) -> Option<&'static str> {
    let mut paths = paths.iter().copied();
    paths.find(|path| is_executable(Path::new(path)))
}

/// Finds a program of Colibri: in the directory of the running program, in libexec of the same prefix, or in
/// [`LIBEXEC`].
fn find_program(program: &str) -> Option<PathBuf> {
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
