//! Ends an agent and verifies it: signal, grace, KILL, and a look at what is left.
//!
//! The shim does this for all that it may signal. What runs as another user inside a FreeBSD jail is
//! reached through the privilege backend: single processes of a persistent jail, the whole of one of ours.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use colibri_jail_core::{CommandLine, JailName, JailOp, Pid, Signal};
use colibri_shim::control::{ShimOp, ShimReply};
use colibri_shim::layout;
use colibri_shim::record::{self, ShimRecord};
use colibri_sys::process;
use tokio::io::AsyncReadExt;

use colibri_prepare::PrepareError;
use colibri_types::KillOutcome;

use crate::adopt::blocking;
use crate::link::AT_ONCE;
use crate::{Agent, AgentSpec, LinkError, SpawnError, Spawner};

/// Timeout of a privileged command; it is killed after it.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);
/// Grace period for the last signal to an agent whose shim speaks protocol 1, where that signal is sent as a kill.
const LONG_GRACE: Duration = Duration::from_secs(24 * 3600);
/// Maximum length of a privileged command's stderr in an error message, in bytes.
const MAX_SAID: usize = 2048;

/// How long a shim itself waits for the dead to disappear after KILL.
const SHIM_VERIFIES: Duration = Duration::from_secs(5);

/// What was done. Nothing of the agent is left, unless only a signal was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KillReport {
    /// How it went.
    pub outcome: KillOutcome,
}

impl Spawner {
    /// Delivers a signal and does no more.
    ///
    /// # Errors
    /// The signal was not delivered: the shim does not answer, or the agent runs as another user and the command of the
    /// privilege backend failed.
    pub async fn signal(&self, agent: &Agent, signal: Signal) -> Result<KillReport, SpawnError> {
        self.send_signal(agent, signal, false).await
    }

    /// Delivers a signal; the agent is never started again after it.
    ///
    /// # Errors
    /// As [`Spawner::signal`].
    pub async fn signal_last(
        &self,
        agent: &Agent,
        signal: Signal,
    ) -> Result<KillReport, SpawnError> {
        if agent.link.protocol() >= 2 {
            return self.send_signal(agent, signal, true).await;
        }
        // A shim of protocol 1 stops restarts only with a kill, and answers when the kill has ended.
        let (link, signal) = (agent.link.clone(), signal.to_string());
        let grace_ms = u64::try_from(LONG_GRACE.as_millis()).unwrap_or(u64::MAX);
        tokio::spawn(async move {
            let op = ShimOp::Kill { signal, grace_ms };
            let _ = link.request_within(LONG_GRACE * 2, op, Vec::new()).await;
        });
        Ok(KillReport {
            outcome: KillOutcome::Signalled,
        })
    }

    /// Ends the agent's current run as a kill with TERM does; its shim starts the next one immediately.
    ///
    /// # Errors
    /// The agent has ended or is being ended, or its shim does not answer or is of an earlier release.
    pub async fn restart(&self, agent: &Agent, grace: Duration) -> Result<(), SpawnError> {
        if agent.link.protocol() < 2 {
            return Err(LinkError::Refused(
                "it is of an earlier release and cannot restart an agent; kill the agent and spawn it again"
                    .to_owned(),
            )
            .into());
        }
        let op = ShimOp::Restart {
            grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
        };
        match agent.link.request_within(AT_ONCE, op, Vec::new()).await {
            Ok(_) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn send_signal(
        &self,
        agent: &Agent,
        signal: Signal,
        last: bool,
    ) -> Result<KillReport, SpawnError> {
        let op = ShimOp::Signal {
            signal: signal.to_string(),
            last,
        };
        let outcome = match agent.link.request_within(AT_ONCE, op, Vec::new()).await {
            Ok(ShimReply::Signalled(delivery)) => {
                self.signal_elevated(&agent.spec, signal, &delivery.denied)
                    .await?;
                KillOutcome::Signalled
            }
            Ok(_) | Err(LinkError::Gone) => KillOutcome::AlreadyExited,
            Err(error) => return Err(error.into()),
        };
        Ok(KillReport { outcome })
    }

    /// Signal, grace, KILL, verify.
    ///
    /// # Errors
    /// [`SpawnError::KillUnverified`] names the processes that are left.
    pub async fn kill(
        &self,
        agent: &Agent,
        signal: Signal,
        grace: Duration,
    ) -> Result<KillReport, SpawnError> {
        // On Linux it is the backend that makes the agent another user.
        let in_jail_of_another_user = agent.spec.config.is_jailed()
            && (self.preparer.engine.needs_root() || !self.preparer.backend.runs_as_caller());
        let lived = in_jail_of_another_user
            && self.signal(agent, signal).await?.outcome == KillOutcome::Signalled;
        if lived
            && tokio::time::timeout(grace, agent.link.ended())
                .await
                .is_ok()
        {
            return Ok(KillReport {
                outcome: KillOutcome::Terminated,
            });
        }
        let mut failure = None;
        let (signal, grace) = if in_jail_of_another_user {
            // bubblewrap has no command to remove a sandbox, and not every backend has one of its own.
            let remove = self
                .own_jail(&agent.spec)
                .map(|name| JailOp::Remove { name })
                .filter(|remove| {
                    self.preparer
                        .backend
                        .elevate(remove, &*self.preparer.engine)
                        .is_ok()
                });
            // The verification below checks whether processes are left, and then reports this failure as the cause.
            let ended = match remove {
                Some(remove) => self.run_elevated(&remove).await,
                None => self.signal(agent, Signal::KILL).await.map(drop),
            };
            if let Err(error) = ended {
                tracing::warn!(id = %agent.spec.id, %error, "jail not ended through the privilege backend");
                failure = Some(error.to_string());
            }
            ("KILL".to_owned(), Duration::ZERO)
        } else {
            (signal.to_string(), grace)
        };
        let (forced, remaining, denied) = match self.shim_kill(agent, &signal, grace).await? {
            Some(reply) => reply,
            // Gone by now: through the backend, if it was there before.
            None if lived => {
                return Ok(KillReport {
                    outcome: KillOutcome::Killed,
                });
            }
            None => {
                return Ok(KillReport {
                    outcome: KillOutcome::AlreadyExited,
                });
            }
        };
        if !denied.is_empty() {
            let sent = self
                .signal_elevated(&agent.spec, Signal::KILL, &denied)
                .await;
            failure = sent.err().map(|error| error.to_string()).or(failure);
            if let Some((_, remaining, _)) = self.shim_kill(agent, "KILL", Duration::ZERO).await? {
                let why = failure.unwrap_or_else(|| {
                    "KILL was sent through the privilege backend too".to_owned()
                });
                unverified(agent, remaining, &why)?;
            }
        } else {
            let why = failure.unwrap_or_else(|| "KILL was sent for 5 s".to_owned());
            unverified(agent, remaining, &why)?;
        }
        // One that outlived the grace needed more than the signal, even if the shim saw its end only.
        let outcome = if forced || lived {
            KillOutcome::Killed
        } else {
            KillOutcome::Terminated
        };
        Ok(KillReport { outcome })
    }

    /// Asks the shim; `None` where it has gone, which it does only after its agent. A shim that does not
    /// answer (somebody stopped it) is killed itself: its agent dies with it, and what is left is ended when
    /// its end is recorded.
    async fn shim_kill(
        &self,
        agent: &Agent,
        signal: &str,
        grace: Duration,
    ) -> Result<Option<(bool, Vec<i32>, Vec<i32>)>, SpawnError> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let limit = grace.saturating_add(SHIM_VERIFIES).saturating_add(AT_ONCE);
        loop {
            let op = ShimOp::Kill {
                signal: signal.to_owned(),
                grace_ms,
            };
            return match agent.link.request_within(limit, op, Vec::new()).await {
                Ok(ShimReply::Killed {
                    forced,
                    remaining,
                    denied,
                }) => Ok(Some((forced, remaining, denied))),
                Ok(_) | Err(LinkError::Gone) => Ok(None),
                // To ask twice does no harm.
                Err(LinkError::Interrupted) => continue,
                Err(LinkError::Silent(limit)) => {
                    self.kill_shim(agent, limit).await?;
                    Ok(Some((true, Vec::new(), Vec::new())))
                }
                Err(error) => Err(error.into()),
            };
        }
    }

    async fn kill_shim(&self, agent: &Agent, limit: Duration) -> Result<(), SpawnError> {
        let path = agent.directory.join(layout::SHIM);
        let silent = || SpawnError::Link(LinkError::Silent(limit));
        let shim: ShimRecord = record::read(&path)
            .map_err(|error| SpawnError::from_io("reading", &path, error))?
            .ok_or_else(silent)?;
        let found = process::find(shim.shim_pid).map_err(|error| {
            SpawnError::from_io("looking for the shim of", &agent.directory, error)
        })?;
        // The start time says that it is the shim still, and no other process with its number.
        if let Some(process) = found.filter(|found| found.start == shim.shim_start) {
            tracing::warn!(id = %agent.spec.id, pid = process.pid, "killing a shim that does not answer");
            process::kill(&process).map_err(|error| {
                SpawnError::from_io("killing the shim of", &agent.directory, error)
            })?;
        }
        tokio::time::timeout(AT_ONCE, agent.link.ended())
            .await
            .map(drop)
            .map_err(|_| silent())
    }

    /// The jail that was made for this agent, if there is one that can be removed.
    pub(crate) fn own_jail(&self, spec: &AgentSpec) -> Option<JailName> {
        let jail = spec.config.jail.as_ref()?;
        if jail.name.is_some() || jail.path.is_none() {
            return None;
        }
        format!("colibri-{}", spec.id).parse().ok()
    }

    pub(crate) async fn signal_elevated(
        &self,
        spec: &AgentSpec,
        signal: Signal,
        pids: &[i32],
    ) -> Result<(), SpawnError> {
        let pids = if self.preparer.engine.has_wrapper_process() && signal != Signal::KILL {
            inside(pids)
        } else {
            pids.to_vec()
        };
        let numbers = pids.clone();
        let pids: Vec<Pid> = pids
            .iter()
            .filter_map(|pid| u32::try_from(*pid).ok())
            .filter_map(|pid| Pid::new(pid).ok())
            .collect();
        if pids.is_empty() {
            return Ok(());
        }
        let jail = spec
            .config
            .jail
            .as_ref()
            .and_then(|jail| jail.name.as_ref()?.parse().ok());
        let op = JailOp::Signal { jail, pids, signal };
        match self.run_elevated(&op).await {
            // The signal fails for processes that have ended meanwhile: not an error.
            Err(SpawnError::PrivilegedCommand { .. }) if !any_lives(numbers).await => Ok(()),
            sent => sent,
        }
    }

    pub(crate) async fn run_elevated(&self, op: &JailOp) -> Result<(), SpawnError> {
        let command = self
            .preparer
            .backend
            .elevate(op, &*self.preparer.engine)
            .map_err(PrepareError::from)?;
        self.run_command(&command).await
    }

    /// Runs a privileged command to its end, within a time limit.
    ///
    /// # Errors
    /// It could not be started, failed, or did not end in time.
    pub(crate) async fn run_command(&self, command: &CommandLine) -> Result<(), SpawnError> {
        tracing::info!(command = %command, "running through the privilege backend");
        let child = tokio::process::Command::new(command.program())
            .args(command.args())
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| SpawnError::from_io("running", command.program().as_ref(), error))?;
        let failed = |problem: String| SpawnError::PrivilegedCommand {
            command: command.to_string(),
            problem,
        };
        let output = match tokio::time::timeout(COMMAND_LIMIT, collect(child)).await {
            Ok(output) => {
                output.map_err(|error| failed(format!("its end is not known: {error}")))?
            }
            Err(_) => return Err(failed(format!("it did not end within {COMMAND_LIMIT:?}"))),
        };
        let (status, said) = output;
        if status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&said);
        Err(failed(format!("{status}: {}", said.trim_end())))
    }
}

/// Waits for the end of a command; returns its status and the beginning of its stderr.
async fn collect(mut child: tokio::process::Child) -> std::io::Result<(ExitStatus, Vec<u8>)> {
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let mut stderr = tokio::io::BufReader::new(stderr);
        let limit = MAX_SAID as u64;
        (&mut stderr).take(limit).read_to_end(&mut said).await?;
        // The rest is read and dropped, so that the command does not block on a full pipe.
        tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await?;
    }
    Ok((child.wait().await?, said))
}

async fn any_lives(pids: Vec<i32>) -> bool {
    let look = move || {
        pids.iter()
            .any(|pid| !matches!(process::find(*pid), Ok(None)))
    };
    blocking(look).await.unwrap_or(true)
}

/// Those of the processes that are in a pid namespace of their own, or all where none is: whatever stands between the
/// shim and the sandbox (bwrap, sudo) would take the agent with it before it has heard of the signal.
fn inside(pids: &[i32]) -> Vec<i32> {
    // NSpid lists a number for each namespace, from that of /proc inwards (proc_pid_status(5)).
    let depth = |process: &str| {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("NSpid:"))?;
        Some(line.split_whitespace().count())
    };
    let own = depth("self");
    let inside: Vec<i32> = pids
        .iter()
        .copied()
        .filter(|pid| depth(&pid.to_string()) > own)
        .collect();
    if inside.is_empty() {
        pids.to_vec()
    } else {
        inside
    }
}

fn unverified(agent: &Agent, remaining: Vec<i32>, why: &str) -> Result<(), SpawnError> {
    if remaining.is_empty() {
        return Ok(());
    }
    Err(SpawnError::KillUnverified {
        id: agent.spec.id.to_string(),
        remaining,
        why: why.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use std::sync::Arc;

    use colibri_jail_core::{Bubblewrap, CommandLine, JailEngine};
    use colibri_journal::JournalOptions;
    use colibri_priv::{Finding, PrivBackend, PrivError};

    /// Elevates every operation to one shell script.
    struct Script(&'static str);

    #[async_trait::async_trait]
    impl PrivBackend for Script {
        fn name(&self) -> &str {
            "script"
        }

        fn elevate(&self, _: &JailOp, _: &dyn JailEngine) -> Result<CommandLine, PrivError> {
            let args = vec!["-c".to_owned(), self.0.to_owned()];
            Ok(CommandLine::new("/bin/sh".to_owned(), args)?)
        }

        async fn preflight(&self) -> Vec<Finding> {
            Vec::new()
        }
    }

    fn spawner(script: &'static str) -> Spawner {
        Spawner {
            preparer: crate::Preparer {
                engine: Arc::new(Bubblewrap::default()),
                backend: Arc::new(Script(script)),
                private_directories: Vec::new(),
                host: crate::HostEnv::default(),
                cgroups: crate::Cgroups::Unavailable(String::new()),
                soft_open_files: None,
            },
            state: crate::StateDir::new(PathBuf::from("/nonexistent")),
            shim: PathBuf::from("/nonexistent/shim"),
            journal: JournalOptions::default(),
            ahead: crate::Ahead::default(),
        }
    }

    fn remove() -> JailOp {
        JailOp::Remove {
            name: "colibri-a".parse().unwrap(),
        }
    }

    #[tokio::test]
    async fn failed_privileged_command_is_an_error() {
        let error = spawner("echo no such jail >&2; exit 3")
            .run_elevated(&remove())
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("exit status: 3: no such jail"), "{error}");
        spawner("exit 0").run_elevated(&remove()).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn hanging_privileged_command_is_ended_at_its_limit() {
        let error = spawner("exec sleep 1000")
            .run_elevated(&remove())
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("did not end within 30s"), "{error}");
    }

    #[tokio::test]
    async fn undelivered_signal_is_an_error_unless_its_target_ended() {
        let spec: AgentSpec = serde_json::from_value(serde_json::json!({
            "id": "a", "program": "p", "engine": "bubblewrap", "privilege": "script", "created_at_ns": 0,
        }))
        .unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let spawner = spawner("exit 1");
        let sent = spawner.signal_elevated(&spec, Signal::TERM, &[pid]).await;
        assert!(
            matches!(sent, Err(SpawnError::PrivilegedCommand { .. })),
            "{sent:?}"
        );
        child.kill().unwrap();
        child.wait().unwrap();
        let sent = spawner.signal_elevated(&spec, Signal::TERM, &[pid]).await;
        assert!(sent.is_ok(), "{sent:?}");
    }
}
