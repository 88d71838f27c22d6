//! Checks each requirement of a spawn, and reports how to fix those that fail. It changes nothing except a file that it
//! writes and removes, and every check has a timeout.

mod directories;
mod freebsd;
mod limits;
mod sandbox;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use colibri_jail_core::{CommandLine, HostSetting, JailConfig, JailOp, LimitMechanism, Limits};
use colibri_priv::checks::executable;
use colibri_priv::{Finding, FindingStatus, probe};
use colibri_sys::regular_file;
use rustix::process::{Resource, geteuid, getrlimit};
use tokio::sync::Semaphore;

use crate::Preparer;

pub(crate) use self::freebsd::sharing_warnings;
pub(crate) use self::sandbox::{check_strict, is_host_root};

/// Timeout of one program.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of a backend's preflight.
const BACKEND_TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum size of the value of a setting, in bytes.
const MAX_SETTING_BYTES: u64 = 4096;
/// Limits the number of concurrent checks on separate threads; a check that hangs keeps its thread.
static CHECK_THREADS: Semaphore = Semaphore::const_new(16);
/// Number of descriptors that the daemon needs itself, including some connections and a spawn.
const DAEMON_DESCRIPTORS: u64 = 40;
/// Number of agents below which the limit of descriptors is reported as too low.
const FEW_AGENTS: u64 = 100;

/// Paths of a daemon that [`Preparer::preflight`] checks besides the engine and the backend.
#[derive(Debug, Clone)]
pub struct Installation {
    /// The shim program.
    pub shim: PathBuf,
    /// The state directory.
    pub state_dir: PathBuf,
    /// The daemon's socket.
    pub socket: PathBuf,
    /// The confinements of running agents and of the settings file.
    pub confinements: Vec<KnownConfinement>,
}

/// The user of a confinement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfinementOwner {
    /// A running agent, with its id.
    Agent(String),
    /// A profile of the settings file, with its name.
    Profile(String),
    /// An `[[autostart]]` entry of the settings file, with its key.
    Autostart(String),
}

impl fmt::Display for ConfinementOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(id) => write!(f, "agent {id}"),
            Self::Profile(name) => write!(f, "profile {name}"),
            Self::Autostart(key) => write!(f, "autostart entry {key}"),
        }
    }
}

/// A confinement that an agent has, or that a profile or an `[[autostart]]` entry requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownConfinement {
    owner: ConfinementOwner,
    /// Absent: no jail.
    jail: Option<JailConfig>,
}

impl KnownConfinement {
    /// Creates a value. A configuration with limits only does not request a jail.
    #[must_use]
    pub fn new(owner: ConfinementOwner, jail: Option<&JailConfig>) -> Self {
        let jail = jail.filter(|jail| jail.is_jail()).cloned();
        Self { owner, jail }
    }

    /// Returns the confinements of a settings file: those of its profiles and its `[[autostart]]` entries, with their names.
    pub fn of_settings<'a>(
        profiles: impl Iterator<Item = (&'a str, &'a JailConfig)>,
        autostart: impl Iterator<Item = (&'a str, &'a JailConfig)>,
    ) -> Vec<Self> {
        let profiles =
            profiles.map(|(name, jail)| (ConfinementOwner::Profile(name.to_owned()), jail));
        let autostart =
            autostart.map(|(key, jail)| (ConfinementOwner::Autostart(key.to_owned()), jail));
        let all = profiles.chain(autostart);
        all.map(|(owner, jail)| Self::new(owner, Some(jail)))
            .collect()
    }

    fn is_agent(&self) -> bool {
        matches!(self.owner, ConfinementOwner::Agent(_))
    }
}

impl Preparer {
    /// Checks the requirements of a spawn: the engine and its programs, the privilege backend, the shim, the directories,
    /// descriptors and disk space; on FreeBSD also the kernel's release and the jails. Every check has a timeout.
    pub async fn preflight(&self, installation: &Installation) -> Vec<Finding> {
        let mut findings = vec![Finding::ok(format!(
            "engine {}, privilege {}",
            self.engine.name(),
            self.backend.name()
        ))];
        findings.extend(self.programs());
        findings.extend(self.backend_findings().await);
        let usable = findings
            .iter()
            .all(|finding| finding.status != FindingStatus::Fail);
        let installation = installation.clone();
        let confinements = installation.confinements.clone();
        if usable {
            findings.extend(self.engine_works().await);
        }
        if self.completes_sandbox() {
            findings.extend(sandbox::findings());
        }
        // Blocking file operations do not run on an async worker.
        let checked = on_a_thread("colibri-doctor", move || {
            let mut findings = vec![executable(
                &installation.shim.to_string_lossy(),
                "install colibri-shim beside colibri-daemon, or set COLIBRI_SHIM",
            )];
            findings.extend(directories::check_state(&installation.state_dir));
            findings.extend(directories::check_socket(&installation.socket));
            findings.push(descriptors());
            findings
        });
        match checked.await {
            Ok(checked) => findings.extend(checked),
            Err(finding) => findings.push(finding),
        }
        if usable && let Some(mechanism) = self.limit_mechanism() {
            findings.extend(limits::enforceable(mechanism, &self.cgroups).await);
        }
        findings.extend(freebsd::findings(&confinements).await);
        findings
    }

    fn programs(&self) -> Vec<Finding> {
        let programs = self.engine.programs();
        let check = |program: &String| executable(program, programs.hint);
        programs.paths.iter().map(check).collect()
    }

    /// Returns how limits of an agent with a new jail are enforced.
    fn limit_mechanism(&self) -> Option<LimitMechanism> {
        let config = JailConfig {
            path: Some("/".to_owned()),
            ..JailConfig::default()
        };
        let confinement = config.confinement(&"colibri-doctor".parse().ok()?).ok()?;
        Some(self.engine.limit_mechanism(&confinement))
    }

    /// Runs the preflight of the backend in a task with a timeout, because it may be a third party's.
    async fn backend_findings(&self) -> Vec<Finding> {
        if self.engine.needs_root() && self.backend.runs_as_caller() && !geteuid().is_root() {
            return vec![Finding::fail(
                format!(
                    "jails need root, and the privilege backend {} does not provide it",
                    self.backend.name()
                ),
                "set COLIBRI_JAIL_PRIV_MODE to mdo or helper",
            )];
        }
        let name = self.backend.name().to_owned();
        let backend = self.backend.clone();
        let mut preflight = tokio::spawn(async move { backend.preflight().await });
        match tokio::time::timeout(BACKEND_TIMEOUT, &mut preflight).await {
            Ok(Ok(findings)) => findings,
            Ok(Err(error)) => vec![Finding::fail(
                format!("the preflight of the privilege backend {name} failed: {error}"),
                "report it to the author of the privilege backend",
            )],
            Err(_) => {
                preflight.abort();
                vec![Finding::fail(
                    format!(
                        "the preflight of the privilege backend {name} did not end within {BACKEND_TIMEOUT:?}"
                    ),
                    "find out what it waits for, e.g. with ps(1), and fix that",
                )]
            }
        }
    }

    /// Runs the engine's probe. A policy of the backend may refuse a trial jail; its preflight reports on the policy.
    async fn engine_works(&self) -> Option<Finding> {
        // Other processes may probe at the same time.
        let name = format!("colibri-doctor-{}", std::process::id());
        let mut probe = self.engine.probe(name.parse().ok()?)?;
        if let JailOp::Create { jail, .. } = &mut probe.op
            && self.completes_sandbox()
            && let Err(error) = self
                .private_host_paths()
                .and_then(|host| self.complete_sandbox(jail, None, &Limits::default(), &host))
        {
            return Some(Finding::fail(
                format!("{}: {error}", probe.failure),
                "report it to the authors of Colibri",
            ));
        }
        let runs_through_backend = matches!(probe.op, JailOp::Create { .. });
        let outcome = match runs_through_backend {
            true if self.backend.has_policy() => return None,
            true => run_command(self.backend.elevate(&probe.op, &*self.engine)).await,
            false => run_command(self.engine.command_line(&probe.op)).await,
        };
        let Err(cause) = outcome else {
            return Some(Finding::ok(probe.success));
        };
        let what = format!("{}: {cause}", probe.failure);
        if runs_through_backend && !self.backend.runs_as_caller() {
            return Some(Finding::warn(
                what,
                "try: colibri run --jail-path ROOT -- true; this privilege backend may allow other roots only",
            ));
        }
        Some(match denying_setting(probe.settings).await {
            Some(setting) => Finding::fail(
                format!("{what} ({} is {})", setting.name, setting.denying_value),
                setting.hint,
            ),
            None => Finding::fail(what, probe.hint),
        })
    }
}

/// Runs work that may block forever on a separate thread. On the runtime's pool it would occupy a thread that others
/// need, and the creation of a pool thread may panic.
async fn on_a_thread<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Finding> {
    let Ok(slot) = CHECK_THREADS.try_acquire() else {
        return Err(Finding::fail(
            "cannot check this host: earlier checks have not ended",
            "find out which file system does not respond, then try again",
        ));
    };
    let (done, result) = tokio::sync::oneshot::channel();
    let started = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let outcome = work();
            drop(slot);
            drop(done.send(outcome));
        });
    if let Err(error) = started {
        return Err(Finding::fail(
            format!("cannot check this host: no thread can be started: {error}"),
            "end processes of this user, or raise the limit of processes: ulimit -u, TasksMax= in a systemd unit, or login.conf(5)",
        ));
    }
    // The sender is dropped without a result only if the work panics.
    result.await.map_err(|_| {
        Finding::fail(
            format!("the thread {name} ended with a panic"),
            "report it to the authors of Colibri",
        )
    })
}

/// Runs a command, and returns the cause of its failure.
async fn run_command(command: Result<CommandLine, impl ToString>) -> Result<(), String> {
    let command = command.map_err(|error| error.to_string())?;
    let program = Path::new(command.program());
    match probe::run(program, command.args(), PROGRAM_TIMEOUT).await {
        Ok(output) if output.is_success() => Ok(()),
        Ok(output) => Err(output.failure()),
        Err(error) => Err(error.to_string()),
    }
}

/// Returns the first of these settings that has the denying value on this host.
async fn denying_setting(settings: &'static [HostSetting]) -> Option<&'static HostSetting> {
    let denies = |setting: &&HostSetting| {
        regular_file::read(setting.path.as_ref(), MAX_SETTING_BYTES)
            .is_ok_and(|value| value.trim_ascii() == setting.denying_value.as_bytes())
    };
    let find = move || settings.iter().find(denies);
    on_a_thread("colibri-doctor", find).await.ok().flatten()
}

/// Checks the hard limit of descriptors, to which the daemon raises its soft limit. A running agent needs one descriptor, a
/// subscriber up to three.
fn descriptors() -> Finding {
    let Some(limit) = getrlimit(Resource::Nofile).maximum else {
        return Finding::ok("descriptors are not limited");
    };
    let agents = limit.saturating_sub(DAEMON_DESCRIPTORS);
    let what = format!("{limit} descriptors allow about {agents} running agents at a time");
    let fix = "raise the hard limit for the daemon: ulimit -Hn 8192, LimitNOFILE= in its systemd unit, or login.conf(5)";
    match agents {
        0 => Finding::fail(what, fix),
        agents if agents < FEW_AGENTS => Finding::warn(what, fix),
        _ => Finding::ok(what),
    }
}
