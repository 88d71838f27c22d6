//! Starts the agent's first process: pipes for its stdio, its own process group, and no inherited descriptor, signal
//! mask, ignored signal or umask.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use colibri_jail_core::CONTROL_VARIABLE;
use colibri_shim::launch::Launch;
use rustix::io::ioctl_fionbio;
use rustix::process::Pid;

use crate::cgroup::Cgroup;
use crate::held::OpenFile;
use crate::monitor::MonitorLink;
use crate::pre_exec;

/// The first process, and the shim's ends of its pipes, all of them non-blocking.
pub(crate) struct AgentProcess {
    pub(crate) pid: Pid,
    /// The process is the wrapper of a sandbox: see [`Launch::wrapper`].
    pub(crate) is_wrapper: bool,
    /// The connection to the agent's monitor, if it has one.
    pub(crate) monitor: Option<MonitorLink>,
    /// Absent if the agent has no input.
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    /// Reports of the proxy, if the agent has one.
    pub(crate) network_events: Option<OwnedFd>,
}

impl AgentProcess {
    /// Executes the program of the launch.
    ///
    /// # Errors
    /// fork(2), chdir(2), setrlimit(2) or execve(2) failed, or the cgroup cannot be entered; no process runs then.
    pub(crate) fn start(
        launch: &Launch,
        cgroup: Option<&Cgroup>,
        held: &[OpenFile],
    ) -> io::Result<Self> {
        let cgroup_procs = cgroup.map(Cgroup::open_procs).transpose()?;
        let mut command = Command::new(&launch.program);
        command
            .args(&launch.args)
            .env_clear()
            .envs(launch.env.iter().map(|(name, value)| (name, value)))
            .current_dir(&launch.cwd)
            .process_group(0)
            .stdin(match launch.options.no_input {
                true => Stdio::null(),
                false => Stdio::piped(),
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut monitor = None;
        let mut monitor_end = None;
        if launch.monitored {
            let (ours, theirs) = UnixStream::pair()?;
            command.env(CONTROL_VARIABLE, theirs.as_raw_fd().to_string());
            monitor = Some(MonitorLink::new(ours)?);
            monitor_end = Some(theirs);
        }
        let mut numbers: Vec<_> = held
            .iter()
            .map(|held| (held.file.as_raw_fd(), held.descriptor))
            .collect();
        let mut network_events = None;
        let mut network_end = None;
        if let Some(number) = launch.network_events {
            let (ours, theirs) = io::pipe()?;
            numbers.push((theirs.as_raw_fd(), number));
            network_events = Some(OwnedFd::from(ours));
            network_end = Some(theirs);
        }
        pre_exec::set_up(&mut command, launch, cgroup_procs, monitor_end, numbers);
        let mut child = command.spawn()?;
        drop(network_end);
        let missing = || io::Error::other("a pipe of the agent is missing");
        let agent = Self {
            pid: Pid::from_child(&child),
            is_wrapper: launch.wrapper,
            monitor,
            stdin: child.stdin.take().map(OwnedFd::from),
            stdout: child.stdout.take().ok_or_else(missing)?.into(),
            stderr: child.stderr.take().ok_or_else(missing)?.into(),
            network_events,
        };
        for pipe in [&agent.stdout, &agent.stderr]
            .into_iter()
            .chain(&agent.stdin)
            .chain(&agent.network_events)
        {
            ioctl_fionbio(pipe, true)?;
        }
        Ok(agent)
    }
}
