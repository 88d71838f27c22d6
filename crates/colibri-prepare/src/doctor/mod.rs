//! Checks each requirement of a spawn, and reports how to fix those that fail. It changes nothing except a file that it
//! writes and removes, and every check has a timeout.

mod limits;
mod places;

use std::path::{Path, PathBuf};
use std::time::Duration;

use colibri_jail_core::{CommandLine, Ip4Policy, JailEngine, JailOp, JailSetup};
use colibri_priv::checks::executable;
use colibri_priv::{Finding, FindingStatus, probe};
use rustix::process::{Resource, geteuid, getrlimit};
use tokio::sync::Semaphore;

use crate::Preparer;

/// How long one program may take.
const LIMIT: Duration = Duration::from_secs(5);
/// How long a backend may take for its own look.
const BACKEND: Duration = Duration::from_secs(20);
/// Limits the number of concurrent checks on separate threads; a check of a backend that hangs never ends.
static LOOKS: Semaphore = Semaphore::const_new(16);
/// What the daemon itself has open, with some connections and a spawn on its way.
const OWN_DESCRIPTORS: u64 = 40;
/// Fewer agents than this are hardly meant.
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
}

impl Preparer {
    /// Looks whether what a spawn needs is there and works: the engine's programs and the engine itself, what the
    /// privilege backend needs, the shim, the directories, descriptors and disk. Takes seconds at most.
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
        let (preparer, installation) = (self.clone(), installation.clone());
        // What blocks is kept from the threads that serve.
        let looked = on_a_thread("colibri-doctor", move || {
            let mut findings = Vec::new();
            if usable {
                findings.extend(preparer.engine_works());
            }
            findings.push(executable(
                &installation.shim.to_string_lossy(),
                "install colibri-shim beside colibri-daemon, or set COLIBRI_SHIM",
            ));
            findings.extend(places::state(&installation.state_dir));
            findings.extend(places::socket(&installation.socket));
            findings.push(descriptors());
            if usable {
                findings.extend(limits::enforceable(&preparer.engine, &preparer.cgroups));
            }
            findings
        });
        match looked.await {
            Ok(looked) => findings.extend(looked),
            Err(finding) => findings.push(finding),
        }
        findings
    }

    fn programs(&self) -> Vec<Finding> {
        let (programs, fix): (Vec<&str>, _) = match &self.engine {
            JailEngine::FreebsdJail => (
                vec![
                    "/usr/sbin/jexec",
                    "/usr/sbin/jail",
                    "/usr/sbin/jls",
                    "/bin/kill",
                ],
                "use the bubblewrap engine on Linux; this program comes with FreeBSD",
            ),
            JailEngine::Bubblewrap(bubblewrap) => (
                vec![bubblewrap.program.as_str()],
                "install bubblewrap (Debian and Ubuntu: apt install bubblewrap)",
            ),
        };
        let look = |program: &&str| executable(program, fix);
        programs.iter().map(look).collect()
    }

    /// The backend is perhaps somebody else's: it may block, panic or hang.
    async fn backend_findings(&self) -> Vec<Finding> {
        let name = self.backend.name();
        if self.engine.needs_root() && name == "none" && !geteuid().is_root() {
            return vec![Finding::fail(
                "jails need root, and the privilege backend none does not provide it",
                "set COLIBRI_JAIL_PRIV_MODE to mdo or helper",
            )];
        }
        let backend = self.backend.clone();
        let runtime = tokio::runtime::Handle::current();
        let look = on_a_thread("colibri-backend", move || {
            runtime.block_on(backend.preflight())
        });
        match tokio::time::timeout(BACKEND, look).await {
            Ok(Ok(findings)) => findings,
            Ok(Err(finding)) => vec![finding],
            Err(_) => vec![Finding::fail(
                format!("the privilege backend {name} did not end its own look within {BACKEND:?}"),
                "find out what it waits for, e.g. with ps(1), and fix that",
            )],
        }
    }

    /// The real thing, where that harms nobody: an empty sandbox, or a list of jails.
    fn engine_works(&self) -> Option<Finding> {
        match &self.engine {
            // The helper has answered for itself, by its policy.
            JailEngine::Bubblewrap(_) if self.backend.name() == "helper" => None,
            JailEngine::Bubblewrap(_) => Some(self.sandbox_works()),
            JailEngine::FreebsdJail => Some(self.jails_are_listed()),
        }
    }

    fn sandbox_works(&self) -> Finding {
        let none = self.backend.name() == "none";
        let elevated = CommandLine::new("/bin/sh", ["-c", ":"])
            .map_err(|error| error.to_string())
            .and_then(|command| {
                let op = JailOp::Create {
                    name: "colibri-doctor"
                        .parse()
                        .map_err(|_| "its name".to_owned())?,
                    path: "/".parse().map_err(|_| "its root".to_owned())?,
                    ip4: Ip4Policy::Inherit,
                    user: None,
                    workdir: None,
                    setup: JailSetup::default(),
                    command,
                };
                self.backend
                    .elevate(&op, &self.engine)
                    .map_err(|error| error.to_string())
            });
        let why = match elevated.map(|command| run(&command)) {
            Ok(Ok(said)) if said.worked() => {
                return Finding::ok("a sandbox can be made: user namespaces work");
            }
            Ok(Ok(said)) => said.complaint(),
            Ok(Err(error)) => error.to_string(),
            Err(refusal) => refusal,
        };
        let what = format!("a sandbox cannot be made: {why}");
        match forbidding() {
            Some((setting, fix)) if none => Finding::fail(format!("{what} ({setting})"), fix),
            None if none => Finding::fail(
                what,
                "allow user namespaces; in a container start it with: docker run --security-opt seccomp=unconfined --security-opt systempaths=unconfined",
            ),
            _ => Finding::warn(
                what,
                "try: colibri run --jail-path ROOT -- true; this privilege backend may allow other roots only",
            ),
        }
    }

    fn jails_are_listed(&self) -> Finding {
        let fix = "try jls(8); if the daemon runs in a jail itself, set children.max of that jail (jail(8))";
        match self
            .engine
            .command_line(&JailOp::List)
            .map(|list| run(&list))
        {
            Ok(Ok(said)) if said.worked() => {
                Finding::ok(format!("{} jails are there now", said.out.lines().count()))
            }
            Ok(Ok(said)) => {
                Finding::fail(format!("jails cannot be listed: {}", said.complaint()), fix)
            }
            Ok(Err(error)) => Finding::fail(format!("jails cannot be listed: {error}"), fix),
            Err(error) => Finding::fail(format!("jails cannot be listed: {error}"), fix),
        }
    }
}

/// Runs work that may block forever on a separate thread. On the runtime's pool it would occupy a thread that others
/// need, and the creation of a pool thread may panic.
async fn on_a_thread<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Finding> {
    let Ok(slot) = LOOKS.try_acquire() else {
        return Err(Finding::fail(
            "this host cannot be looked at: earlier looks have not ended",
            "see what the privilege backend waits for, then try again",
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
            format!("this host cannot be looked at: no thread can be started: {error}"),
            "end processes of this user, or raise the limit of processes: ulimit -u, TasksMax= in a systemd unit, or login.conf(5)",
        ));
    }
    // The sender is dropped without a result only if the work panics.
    result.await.map_err(|_| {
        Finding::fail(
            format!("the thread {name} ended with a panic"),
            "report it to the author of the privilege backend, or of Colibri",
        )
    })
}

fn run(command: &CommandLine) -> std::io::Result<probe::Said> {
    probe::run(Path::new(command.program()), command.args(), LIMIT)
}

/// The setting of this host that keeps ordinary users from user namespaces (user_namespaces(7), Debian's and Ubuntu's
/// kernels), and how to lift it.
fn forbidding() -> Option<(String, &'static str)> {
    const SETTINGS: &[(&str, &str, &str)] = &[
        (
            "user/max_user_namespaces",
            "0",
            "as root: sysctl user.max_user_namespaces=15000, and the same in /etc/sysctl.d/",
        ),
        (
            "kernel/unprivileged_userns_clone",
            "0",
            "as root: sysctl kernel.unprivileged_userns_clone=1, and the same in /etc/sysctl.d/",
        ),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "give bwrap an AppArmor profile that has userns, or as root: sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    ];
    SETTINGS.iter().find_map(|(setting, forbids, fix)| {
        let value = std::fs::read_to_string(format!("/proc/sys/{setting}")).ok()?;
        (value.trim() == *forbids)
            .then(|| (format!("{} is {forbids}", setting.replace('/', ".")), *fix))
    })
}

/// Every running agent takes one of the daemon's descriptors, every subscriber up to three more. The daemon raises
/// its soft limit to the hard one, which counts therefore.
fn descriptors() -> Finding {
    let Some(limit) = getrlimit(Resource::Nofile).maximum else {
        return Finding::ok("descriptors are not limited");
    };
    let agents = limit.saturating_sub(OWN_DESCRIPTORS);
    let what = format!("{limit} descriptors allow about {agents} running agents at a time");
    let fix = "raise the hard limit for the daemon: ulimit -Hn 8192, LimitNOFILE= in its systemd unit, or login.conf(5)";
    match agents {
        0 => Finding::fail(what, fix),
        few if few < FEW_AGENTS => Finding::warn(what, fix),
        _ => Finding::ok(what),
    }
}
