//! Starts the agent's first process: pipes or a terminal for its stdio, its own process group or session, and no inherited
//! descriptor, signal mask, ignored signal or umask.

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
use crate::terminal::Terminal;

/// The first process, and the shim's ends of its pipes, all of them non-blocking.
pub(crate) struct AgentProcess {
    pub(crate) pid: Pid,
    /// The process is the wrapper of a sandbox: see [`Launch::wrapper`].
    pub(crate) is_wrapper: bool,
    /// The connection to the agent's monitor, if it has one.
    pub(crate) monitor: Option<MonitorLink>,
    /// Absent if the agent has no input.
    pub(crate) stdin: Option<OwnedFd>,
    /// The output pipes; with a terminal, stderr is empty.
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: Option<OwnedFd>,
    /// The shim's end of the agent's terminal, if it has one.
    pub(crate) terminal: Option<OwnedFd>,
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
            .current_dir(&launch.cwd);
        let master = match launch.options.terminal {
            Some(size) => {
                let Terminal { master, agent } = Terminal::open(size)?;
                command
                    .stdin(agent.try_clone()?)
                    .stdout(agent.try_clone()?)
                    .stderr(agent);
                Some(master)
            }
            None => {
                command
                    .stdin(match launch.options.no_input {
                        true => Stdio::null(),
                        false => Stdio::piped(),
                    })
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped());
                None
            }
        };
        if !launch.leads_session() {
            command.process_group(0);
        }
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
        // The agent's end of the terminal too: the other end reports its end when no process has it open.
        drop(command);
        drop(network_end);
        let missing = || io::Error::other("a pipe of the agent is missing");
        let agent = Self {
            pid: Pid::from_child(&child),
            is_wrapper: launch.wrapper,
            monitor,
            stdin: match &master {
                Some(master) => Some(master.try_clone()?),
                None => child.stdin.take().map(OwnedFd::from),
            },
            stdout: match &master {
                Some(master) => master.try_clone()?,
                None => child.stdout.take().ok_or_else(missing)?.into(),
            },
            stderr: child.stderr.take().map(OwnedFd::from),
            terminal: master,
            network_events,
        };
        for pipe in std::iter::once(&agent.stdout)
            .chain(&agent.stderr)
            .chain(&agent.stdin)
            .chain(&agent.network_events)
        {
            ioctl_fionbio(pipe, true)?;
        }
        Ok(agent)
    }
}
