//! Starts the first process: pipes for its stdio, its own process group, and no inherited descriptor, signal mask,
//! ignored signal or umask.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use colibri_shim::launch::Launch;
use rustix::io::ioctl_fionbio;
use rustix::process::Pid;

use crate::cgroup::Cgroup;
use crate::sys;

/// The first process, and our ends of its pipes, all of them non-blocking.
pub(crate) struct Agent {
    pub(crate) pid: Pid,
    /// The pid of a wrapper that signals must spare.
    pub(crate) wrapper: Option<i32>,
    /// Absent where it has no input.
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// Executes the launch.
///
/// # Errors
/// What fork(2), chdir(2) or execve(2) refused; nothing runs then.
pub(crate) fn start(launch: &Launch, cgroup: Option<&Cgroup>) -> io::Result<Agent> {
    let door = cgroup.map(Cgroup::door).transpose()?;
    let mut command = Command::new(&launch.program);
    command
        .args(&launch.args)
        .env_clear()
        .envs(launch.env.iter().map(|(name, value)| (name, value)))
        .current_dir(&launch.cwd)
        .process_group(0)
        .stdin(if launch.options.no_input {
            Stdio::null()
        } else {
            Stdio::piped()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    sys::before_exec(
        &mut command,
        door,
        launch.limits,
        launch.options.umask.unwrap_or_default().bits(),
    );
    let mut child = command.spawn()?;
    let missing = || io::Error::other("a pipe of the agent is missing");
    let agent = Agent {
        pid: Pid::from_child(&child),
        wrapper: launch
            .wrapper
            .then(|| Pid::from_child(&child).as_raw_nonzero().get()),
        stdin: child.stdin.take().map(OwnedFd::from),
        stdout: child.stdout.take().ok_or_else(missing)?.into(),
        stderr: child.stderr.take().ok_or_else(missing)?.into(),
    };
    for pipe in [&agent.stdout, &agent.stderr]
        .into_iter()
        .chain(&agent.stdin)
    {
        ioctl_fionbio(pipe, true)?;
    }
    Ok(agent)
}
