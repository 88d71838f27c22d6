//! Operations through the privilege backend: signals to processes of other users, and removal of jails.

use std::path::Path;
use std::time::Duration;

use colibri_jail_core::{CommandLine, JailOp, Pid, Signal};
use colibri_prepare::PrepareError;
use colibri_priv::probe;
use colibri_sys::process;

use crate::blocking::blocking;
use crate::{AgentSpec, SpawnError, Spawner};

/// Timeout of a privileged command; it is killed after it.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum length of a privileged command's stderr in an error message, in characters.
const MAX_STDERR: usize = 2048;

impl Spawner {
    /// Sends a signal through the privilege backend. Processes that have ended meanwhile are not an error.
    pub(crate) async fn signal_elevated(
        &self,
        spec: &AgentSpec,
        signal: Signal,
        pids: &[i32],
    ) -> Result<(), SpawnError> {
        let spares_wrapper = self.preparer.engine.has_wrapper_process() && signal != Signal::KILL;
        let targets = match spares_wrapper {
            true => sandboxed(pids),
            false => pids.to_vec(),
        };
        let pids: Vec<Pid> = targets
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
            Err(SpawnError::PrivilegedCommand { .. }) if !any_is_alive(targets).await => Ok(()),
            result => result,
        }
    }

    /// Runs a jail operation through the privilege backend.
    ///
    /// # Errors
    /// The backend cannot elevate the operation; see also [`Spawner::run_command`].
    pub(crate) async fn run_elevated(&self, op: &JailOp) -> Result<(), SpawnError> {
        let command = self
            .preparer
            .backend
            .elevate(op, &*self.preparer.engine)
            .map_err(PrepareError::from)?;
        self.run_command(&command).await
    }

    /// Runs a privileged command and waits for its end, with a timeout.
    ///
    /// # Errors
    /// The command cannot be started, fails, or does not end in time.
    pub(crate) async fn run_command(&self, command: &CommandLine) -> Result<(), SpawnError> {
        tracing::info!(command = %command, "running through the privilege backend");
        let program = Path::new(command.program());
        let output = probe::run(program, command.args(), COMMAND_TIMEOUT)
            .await
            .map_err(|error| SpawnError::from_io("running", program, error))?;
        let problem = match output.status {
            Some(status) if status.success() => return Ok(()),
            Some(status) => format!("{status}: {:.MAX_STDERR$}", output.stderr.trim_end()),
            None => format!("it did not end within {COMMAND_TIMEOUT:?}"),
        };
        Err(SpawnError::PrivilegedCommand {
            command: command.to_string(),
            problem,
        })
    }
}

async fn any_is_alive(pids: Vec<i32>) -> bool {
    let any = move || {
        pids.iter()
            .any(|pid| !matches!(process::find(*pid), Ok(None)))
    };
    blocking(any).await.unwrap_or(true)
}

/// Returns the processes in a separate pid namespace, or all if none is in one. A signal to a wrapper outside the sandbox
/// (bwrap, sudo) would kill the agent before the agent can handle the signal.
fn sandboxed(pids: &[i32]) -> Vec<i32> {
    let depth = |pid| process::namespace_pids(pid).map(|process| process.pids.len());
    let own_depth = depth(None);
    let sandboxed: Vec<i32> = pids
        .iter()
        .copied()
        .filter(|pid| depth(Some(*pid)) > own_depth)
        .collect();
    match sandboxed.is_empty() {
        true => pids.to_vec(),
        false => sandboxed,
    }
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
                private_files: Vec::new(),
                known_daemons: None,
                host: crate::HostEnv::default(),
                cgroups: crate::Cgroups::Unavailable("".into()),
                soft_open_files: None,
                adapter: None,
            },
            state: crate::StateDir::new(PathBuf::from("/nonexistent")),
            shim: PathBuf::from("/nonexistent/shim"),
            journal: JournalOptions::default(),
            shim_pool: crate::ShimPool::default(),
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
