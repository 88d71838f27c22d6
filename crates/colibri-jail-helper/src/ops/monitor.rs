//! The monitor of an agent: the root process that starts it, signals its processes, and cleans up after the last one.
//!
//! The monitor is the parent of the agent's first process and the reaper of all others (procctl(2)), so that no process of
//! the agent can leave it, and it stays outside of the jail. It ends the agent when its requester or their connection has
//! ended, on the request to send KILL to all, and if the proxy cannot start.
//!
//! ```text
//! Expected --agent's process is known--> Running --its end--> Ended --no descendant left--> clean up, exit
//!     \____ end of the agent: KILL to all every 20 ms, unmount every 5 s, until no descendant is left ____/
//! ```

use std::ffi::c_int;
use std::fs::File;
use std::io::ErrorKind::{Interrupted, WouldBlock};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::parent_id;
use std::time::{Duration, Instant};

use colibri_jail_core::{JailName, Signal, SignalScope};

use super::mounts;
use super::network::{self, ProxyLink};
use super::root::JailRoot;
use crate::audit;
use crate::control::{ControlReader, ControlRequest};
use crate::error::HelperError;
use crate::escape::printable;
use crate::policy::Rule;
use crate::sys::{self, Event, Fork, Jail, MountPoint, ProcessEnd, Queue, SysError, cannot};

/// Interval between two rounds of KILL.
const KILL_INTERVAL: Duration = Duration::from_millis(20);
/// Maximum number of signals that wait for the agent's first process.
const MAX_PENDING: usize = 64;
/// Maximum time for a removed jail to disappear, and for a mount to become unused.
pub(super) const CLEANUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Time of KILL without success after which the mounts are removed, and removed again.
const RELEASE_INTERVAL: Duration = Duration::from_secs(5);
/// Interval between two checks of the clean-up.
const CLEANUP_INTERVAL: Duration = Duration::from_millis(10);

/// What exists for one agent only, and is removed after its last process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Remains<'a> {
    pub(crate) jail: &'a JailName,
    /// The id of the jail, if it is known: a later jail of the same name is not removed.
    pub(crate) jid: Option<i32>,
    /// The root directory that was prepared for the jail.
    pub(crate) root: Option<JailRoot<'a>>,
}

impl Remains<'_> {
    /// Removes the jail, the mounts, the prepared root and the resource limits, and verifies that none is left. None is not an error.
    pub(crate) fn remove(&self) -> Result<(), HelperError> {
        let jail = self.jail;
        let deadline = Instant::now() + CLEANUP_TIMEOUT;
        let mut problems = Vec::new();
        while let Some(jid) = sys::jail_id(jail)
            && self.jid.is_none_or(|own| own == jid)
        {
            let removed = sys::remove_jail(jid);
            if Instant::now() >= deadline {
                let cause =
                    removed.map_or_else(|error| error.to_string(), |()| "it still exists".into());
                problems.push(format!("cannot remove jail {jail}: {cause}"));
                break;
            }
            std::thread::sleep(CLEANUP_INTERVAL);
        }
        problems.extend(mounts::remove_all(jail, deadline).err());
        if let (true, Some(root)) = (problems.is_empty(), &self.root) {
            problems.extend(root.remove(deadline).err());
        }
        if let Err(error) = sys::remove_limits(jail) {
            problems.push(format!("cannot remove the limits of jail {jail}: {error}"));
        }
        match problems.is_empty() {
            true => Ok(()),
            false => Err(HelperError::Remains(problems.join("; "))),
        }
    }

    /// Unmounts the mounts of the agent once.
    ///
    /// This ends a process that SIGKILL does not end: one that calls rename(2) with a mount point as the target, in FreeBSD 15.1.
    /// [`Remains::remove`] reports what it cannot unmount.
    fn release_processes(&self) {
        let _ = mounts::remove_all(self.jail, Instant::now());
        if let Some(root) = &self.root {
            let _ = root.unmount(Instant::now());
        }
    }
}

/// Unmounts all mounts that `is_wanted` selects, and verifies that none is left. No process with an open file keeps a mount.
pub(super) fn unmount_all(
    is_wanted: &dyn Fn(&MountPoint) -> bool,
    deadline: Instant,
) -> Result<(), String> {
    loop {
        let mut mounts = list_mounts()?;
        mounts.retain(is_wanted);
        let mut failure = None;
        for mount in &mounts {
            if let Err(error) = sys::unmount(mount) {
                let path = String::from_utf8_lossy(&mount.path);
                failure = Some(format!("cannot unmount {path}: {error}"));
            }
        }
        match failure {
            // A further round verifies the result.
            None if mounts.is_empty() => return Ok(()),
            Some(failure) if Instant::now() >= deadline => return Err(failure),
            _ => std::thread::sleep(CLEANUP_INTERVAL),
        }
    }
}

/// Returns the mounts, the last one first.
pub(super) fn list_mounts() -> Result<Vec<MountPoint>, String> {
    sys::mounts().map_err(|error| format!("cannot list mounts: {error}"))
}

/// The agent's first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum First {
    /// The child of the monitor, jail(8), will start it after this number of other commands.
    Expected(u32),
    Running(u32),
    Ended(ProcessEnd),
}

/// A started child, which waits for [`Child::run`].
pub(crate) struct Child {
    pub(crate) pid: u32,
    start: File,
    queue: Queue,
}

impl Child {
    /// Kills the child, which has not started.
    pub(crate) fn end(self) {
        let _ = sys::kill(self.pid, libc::SIGKILL);
        let _ = sys::wait_for(self.pid);
    }
}

/// Forks the process that becomes the agent. In the child, `become_agent` runs after [`Monitor::run`] was called, with no
/// descriptor from 3 up, and the child ends with the error that it returns. The child is killed with its parent.
pub(crate) fn fork(become_agent: impl FnOnce() -> HelperError) -> Result<Child, HelperError> {
    let queue = Queue::new().map_err(cannot("create an event queue"))?;
    queue.watch_children().map_err(cannot("watch children"))?;
    let (reader, start) = sys::pipe().map_err(cannot("create a pipe"))?;
    match sys::fork().map_err(cannot("fork"))? {
        Fork::Parent(pid) => Ok(Child {
            pid,
            start: start.into(),
            queue,
        }),
        Fork::Child => {
            let error = wait_for_start(reader).map_or_else(Into::into, |()| become_agent());
            audit::print_error(&error, u32::MAX);
            sys::exit(error.exit_code());
        }
    }
}

/// Waits in the child until the monitor is ready.
fn wait_for_start(reader: OwnedFd) -> Result<(), SysError> {
    sys::die_with_parent()?;
    sys::lead_process_group().map_err(cannot("create a process group"))?;
    let reader = sys::keep_one(reader).map_err(cannot("close descriptors"))?;
    let mut reader = File::from(reader);
    let started = reader.read_exact(&mut [0]);
    started.map_err(cannot("start: the monitor has ended"))?;
    drop(reader);
    sys::close_from(3)
}

/// The monitor of a started child.
pub(crate) struct Monitor<'a> {
    child: Child,
    pub(crate) first: First,
    child_end: Option<ProcessEnd>,
    /// The process that requested the agent.
    requester: u32,
    /// The socket of the requester, if it has one.
    control: Option<OwnedFd>,
    reader: ControlReader,
    /// Requests that wait for the agent's first process.
    pending: Vec<ControlRequest>,
    /// The rule whose signals the requester may send; without one, it may send every signal.
    pub(crate) rule: Option<&'a Rule>,
    /// The connection to the proxy of a filtered jail.
    pub(crate) proxy: Option<ProxyLink>,
    pub(crate) remains: Option<Remains<'a>>,
    /// Owning descriptor of the jail in `remains`.
    jail: Option<Jail>,
    /// Set while the agent is being killed: when its mounts are removed next.
    next_release: Option<Instant>,
    /// Whether descriptors 0 to 2 are for the agent alone, so that its readers see their end with the agent's.
    pub(crate) releases_stdio: bool,
}

impl<'a> Monitor<'a> {
    /// Returns the monitor of a child that becomes the agent.
    pub(crate) fn new(child: Child, requester: u32, control: Option<OwnedFd>) -> Self {
        Self {
            first: First::Running(child.pid),
            child,
            child_end: None,
            requester,
            control,
            reader: ControlReader::default(),
            pending: Vec::new(),
            rule: None,
            proxy: None,
            remains: None,
            jail: None,
            next_release: None,
            releases_stdio: true,
        }
    }

    /// Removes a jail, which this process created, with the agent.
    pub(crate) fn own_jail(&mut self, name: &'a JailName, jail: Jail) {
        self.remains = Some(Remains {
            jail: name,
            jid: Some(jail.jid),
            root: None,
        });
        self.jail = Some(jail);
    }

    /// Starts the child, waits until no process of the agent is left, and removes what existed for it. Returns the exit
    /// code of the agent, or 128 plus the number of the signal that ended it.
    pub(crate) fn run(mut self) -> Result<c_int, HelperError> {
        let queue = &self.child.queue;
        let follow = matches!(self.first, First::Expected(_));
        let watched = queue.watch_process(self.child.pid, follow);
        watched.map_err(cannot("watch the agent"))?;
        // Also with a control socket: the agent may hold its other end. A requester that has ended is not the parent any more:
        // init(8), pid 1, may be, and never ends.
        let watched = queue.watch_process(self.requester, false);
        if watched.is_err() || parent_id() != self.requester || self.requester <= 1 {
            return Err(HelperError::Orphaned);
        }
        if let Some(socket) = &self.control {
            let watched = queue.watch_input(socket.as_fd());
            watched.map_err(cannot("watch the control socket"))?;
        }
        if self.releases_stdio {
            sys::release_stdio().map_err(cannot("redirect descriptors to /dev/null"))?;
        }
        let started = self.child.start.write_all(&[1]);
        started.map_err(cannot("start the agent"))?;
        self.report_start();
        self.supervise()?;
        let end = self.finish();
        // The proxy ends. Its sockets refer to the jail.
        self.proxy = None;
        let cleaned = self.remains.map_or(Ok(()), |remains| remains.remove());
        if let Err(error) = cleaned {
            self.report(&format!("error {}", printable(&error.to_string())));
            return Err(error);
        }
        Ok(end.code())
    }

    /// Handles events until no descendant is left.
    fn supervise(&mut self) -> Result<(), SysError> {
        loop {
            if self.collect() {
                return Ok(());
            }
            if let Some(release) = self.next_release {
                self.kill();
                if Instant::now() >= release {
                    self.remains.iter().for_each(Remains::release_processes);
                    self.next_release = Some(Instant::now() + RELEASE_INTERVAL);
                }
            }
            let timeout = self.next_release.map(|_| KILL_INTERVAL);
            let events = self.child.queue.wait(timeout);
            for event in events.map_err(cannot("wait for events"))? {
                self.handle(event);
            }
        }
    }

    /// Collects ended children. Returns whether no process of the agent is left; orphans of the agent are children of this
    /// reaper. A child from before this process became a reaper, such as the proxy or one of the caller's, is not a descendant
    /// of the reaper (procctl(2)) and does not count.
    fn collect(&mut self) -> bool {
        loop {
            match sys::collect_child() {
                Ok(Some((pid, end))) if pid == self.child.pid => {
                    self.child_end = Some(end);
                    if self.first == First::Running(pid) {
                        self.set_end(end);
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => return !sys::has_descendants(),
                Err(error) if error.kind() == Interrupted => {}
                Err(_) => return true,
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Readable => self.receive(),
            Event::Forked { parent, child } if parent == self.child.pid => {
                self.open_proxy_port();
                self.count_fork(child);
            }
            Event::Executed { pid } => self.end_jail_with_processes(pid),
            Event::Ended { pid, .. } if pid == self.requester => self.start_kill(),
            // The child's end is collected by wait(2).
            Event::Ended { pid, status }
                if pid != self.child.pid && self.first == First::Running(pid) =>
            {
                self.set_end(ProcessEnd::from_status(status));
            }
            _ => {}
        }
    }

    /// Opens the port of the proxy as soon as jail(8) has created the jail; jail(8) waits for it (`await-proxy`). Blocks for at
    /// most [`network::PROXY_TIMEOUT`]; events wait meanwhile.
    fn open_proxy_port(&mut self) {
        let Some(remains) = self.remains else { return };
        if let (Some(ProxyLink::Waiting(_)), Some(jid)) = (&self.proxy, sys::jail_id(remains.jail))
            && let Some(ProxyLink::Waiting(proxy)) = self.proxy.take()
        {
            if let Err(error) = network::open_port(remains.jail, jid, &proxy) {
                self.report(&format!("error {}", printable(&error.to_string())));
                self.start_kill();
            }
            self.proxy = Some(ProxyLink::Open(proxy));
        }
    }

    /// Finds the agent among the processes that jail(8) starts.
    fn count_fork(&mut self, pid: u32) {
        match self.first {
            First::Expected(0) => {
                self.first = First::Running(pid);
                // Its children are not followed. It may have ended already.
                let _ = self.child.queue.watch_process(pid, false);
                if let (Some(remains), None) = (self.remains, &self.jail) {
                    self.jail = sys::own_jail(remains.jail).ok();
                }
                self.report_start();
                for request in std::mem::take(&mut self.pending) {
                    self.signal(request);
                }
            }
            First::Expected(commands) => self.first = First::Expected(commands - 1),
            _ => {}
        }
    }

    /// Lets the kernel remove the created jail with its last process. The agent's first process is in it after its
    /// execve(2).
    fn end_jail_with_processes(&self, pid: u32) {
        if let (Some(jail), First::Running(first)) = (&self.jail, self.first)
            && pid == first
        {
            // If it fails, the clean-up removes the jail.
            let _ = sys::end_with_processes(jail.jid);
        }
    }

    fn set_end(&mut self, end: ProcessEnd) {
        self.first = First::Ended(end);
        match end {
            ProcessEnd::Code(code) => self.report(&format!("exit {code}")),
            ProcessEnd::Signal(signal) => self.report(&format!("signal {signal}")),
        }
    }

    fn report_start(&mut self) {
        if let First::Running(pid) = self.first {
            self.report(&format!("agent {pid}"));
        }
    }

    /// Sends a line to the requester, who may have ended, or may not read.
    fn report(&mut self, line: &str) {
        if let Some(control) = &self.control {
            let _ = sys::send_now(control, format!("{line}\n").as_bytes());
        }
    }

    /// Reads requests on the control socket once, so that a flood of them delays no other event. Its end, and an invalid
    /// request, end the agent.
    fn receive(&mut self) {
        let mut buffer = [0; 1024];
        let Some(control) = &self.control else {
            return;
        };
        let requests = match sys::receive_now(control, &mut buffer) {
            Ok(0) => None,
            Ok(count) => self.reader.push(buffer.get(..count).unwrap_or_default()),
            Err(error) if matches!(error.kind(), WouldBlock | Interrupted) => return,
            Err(_) => None,
        };
        let Some(requests) = requests else {
            self.control = None;
            self.start_kill();
            return;
        };
        for request in requests {
            let ControlRequest { signal, .. } = request;
            // KILL adds no right: the end of the requester ends the agent too.
            let is_kill = signal == Signal::KILL;
            if !is_kill && self.rule.is_some_and(|rule| !rule.allows_signal(signal)) {
                self.report(&format!("refused {signal}"));
            } else if is_kill || !matches!(self.first, First::Expected(_)) {
                self.signal(request);
            } else if self.pending.len() < MAX_PENDING {
                self.pending.push(request);
            }
        }
    }

    /// Sends a signal to processes of the agent, and never to jail(8), whose end would leave the jail.
    fn signal(&mut self, request: ControlRequest) {
        if request.signal == Signal::KILL && request.scope == SignalScope::All {
            return self.start_kill();
        }
        let first = match self.first {
            First::Running(pid) => Some(pid),
            _ => None,
        };
        let group = first.and_then(sys::process_group);
        let jid = |pid| sys::process_info(pid).map(|info| info.jid);
        for pid in sys::descendants(std::process::id(), None) {
            // In a jail only processes of the agent have this monitor as their reaper. A process that has not entered its
            // jail yet is the child itself, whose pid is not reused before it is collected.
            let is_agent = Some(pid) == first || jid(pid).is_some_and(|jid| jid != 0);
            let in_scope = match request.scope {
                SignalScope::All => true,
                SignalScope::Group => group.is_some() && sys::process_group(pid) == group,
            };
            if is_agent && in_scope {
                // The process may have ended.
                let _ = sys::kill(pid, sys::signal_number(request.signal));
            }
        }
    }

    /// Starts the rounds of KILL.
    fn start_kill(&mut self) {
        self.next_release
            .get_or_insert_with(|| Instant::now() + RELEASE_INTERVAL);
    }

    /// Kills all processes of the agent.
    fn kill(&mut self) {
        sys::kill_descendants();
        if let Some(jail) = &self.jail {
            let _ = sys::remove_jail(jail.jid);
        }
    }

    /// Returns how the agent ended. The last events may not have been read yet.
    fn finish(&mut self) -> ProcessEnd {
        let events = self.child.queue.wait(Some(Duration::ZERO));
        for event in events.unwrap_or_default() {
            self.handle(event);
        }
        match (self.first, self.child_end) {
            (First::Ended(end), _) => end,
            (_, Some(end)) => {
                self.set_end(end);
                end
            }
            // Not reached: the child was collected.
            (_, None) => ProcessEnd::Code(71),
        }
    }
}
