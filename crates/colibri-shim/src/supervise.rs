//! The loop that a shim lives in: pipes to journals, requests to answers, the dead to `exit.json`.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use colibri_shim::control::{Op, Reply, Status};
use colibri_shim::layout;
use colibri_shim::record::{self, Durability, ExitRecord, ExitStatus};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, wait};
use signal_hook::consts::{SIGCHLD, SIGTERM};

use crate::agent::Agent;
use crate::input::Input;
use crate::peer::Peer;
use crate::runs::{End, Runs};
use crate::stream::{CHUNK, Stream};
use crate::teardown::Teardown;
use crate::watchers::{Asker, Watchers};
use crate::{now_ns, sys};

/// How often a full disk is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// Grace of a shim that is itself asked to end, before KILL.
const OWN_GRACE: Duration = Duration::from_secs(5);
/// Most chunks saved after the last process is gone; a pipe holds far less.
const DRAIN: usize = 64;
/// Most chunks of each output between two looks at everything else.
const BURST: usize = 16;

/// SIGCHLD and SIGTERM as readable descriptors.
pub(crate) struct Signals {
    child: UnixStream,
    term: UnixStream,
}

impl Signals {
    pub(crate) fn watch() -> io::Result<Self> {
        let watch = |signal| -> io::Result<UnixStream> {
            let (reader, writer) = UnixStream::pair()?;
            reader.set_nonblocking(true)?;
            signal_hook::low_level::pipe::register(signal, writer)?;
            Ok(reader)
        };
        Ok(Self {
            child: watch(SIGCHLD)?,
            term: watch(SIGTERM)?,
        })
    }
}

/// Empties a signal's descriptor; returns whether there was anything.
fn take(signal: &UnixStream) -> bool {
    let mut any = false;
    while matches!(rustix::io::read(signal, &mut [0; 64]), Ok(count) if count > 0) {
        any = true;
    }
    any
}

/// Where the agent is between a start and its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Processes of it live.
    Running,
    /// None is left; its last output and its end are to be saved.
    Ended,
    /// The next run begins then.
    Waiting(Instant),
}

pub(crate) struct Supervisor {
    runs: Runs,
    phase: Phase,
    /// What follows this run, once that is decided: the wait for the next, or nothing.
    next: Option<Option<Duration>>,
    /// For people, while the next run is waited for.
    waiting: Option<String>,
    pid: Pid,
    wrapper: Option<i32>,
    input: Input,
    outputs: [Stream; 2],
    watchers: Watchers,
    signals: Signals,
    /// How and when the first process ended.
    exit: Option<(ExitStatus, u64)>,
    teardown: Option<Teardown>,
    /// `exit.json` could not be written yet.
    unrecorded: Option<String>,
    next_retry: Option<Instant>,
}

impl Supervisor {
    /// Takes over the first run, which has just been started.
    pub(crate) fn new(
        runs: Runs,
        agent: Agent,
        mut stdout: Stream,
        mut stderr: Stream,
        listener: OwnedFd,
        signals: Signals,
    ) -> Self {
        stdout.connect(agent.stdout);
        stderr.connect(agent.stderr);
        Self {
            runs,
            phase: Phase::Running,
            next: None,
            waiting: None,
            pid: agent.pid,
            wrapper: agent.wrapper,
            input: Input::new(agent.stdin),
            outputs: [stdout, stderr],
            watchers: Watchers::new(listener),
            signals,
            exit: None,
            teardown: None,
            unrecorded: None,
            next_retry: None,
        }
    }

    pub(crate) fn agent_pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Runs until the agent and its descendants are gone and `exit.json` says so; `starter` is connected already.
    ///
    /// # Errors
    /// poll(2) itself fails; nothing that the agent or a peer does is an error here.
    pub(crate) fn run(mut self, starter: Option<Peer>) -> io::Result<()> {
        starter.into_iter().for_each(|peer| self.watchers.add(peer));
        let mut buffer = vec![0; CHUNK];
        loop {
            self.wait_for_something()?;
            if take(&self.signals.child) {
                self.reap();
            }
            if take(&self.signals.term) {
                self.begin_kill(Signal::TERM, OWN_GRACE);
            }
            self.serve();
            self.input.write();
            self.copy(&mut buffer);
            if let Some(reply) = self
                .teardown
                .as_mut()
                .and_then(|kill| kill.step(Instant::now()))
            {
                self.finish_kill(&reply);
            }
            let now = Instant::now();
            if self.runs.limit_strikes(now) {
                self.begin_kill(Signal::TERM, OWN_GRACE);
            }
            if matches!(self.phase, Phase::Waiting(at) if now >= at) {
                self.start_again();
            }
            if self.phase == Phase::Ended && self.settle() {
                return Ok(());
            }
            if self.watchers.want_status() {
                let status = self.status();
                self.watchers.publish(status);
            }
        }
    }

    fn wait_for_something(&self) -> io::Result<()> {
        let mut fds = vec![
            PollFd::new(&self.signals.child, PollFlags::IN),
            PollFd::new(&self.signals.term, PollFlags::IN),
        ];
        for pipe in self.outputs.iter().filter_map(Stream::readable) {
            fds.push(PollFd::new(pipe, PollFlags::IN));
        }
        if let Some(pipe) = self.input.writable() {
            fds.push(PollFd::new(pipe, PollFlags::OUT));
        }
        fds.extend(self.watchers.wanted());
        let deadlines = [
            self.teardown.as_ref().map(Teardown::deadline),
            self.next_retry,
            self.runs.limit_at(),
            match self.phase {
                Phase::Waiting(at) => Some(at),
                _ => None,
            },
            self.outputs[0].sync_due(),
            self.outputs[1].sync_due(),
            self.watchers.due(),
        ];
        let timeout = deadlines.into_iter().flatten().min().map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec::try_from(left).unwrap_or(Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            })
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Collects the dead. The kernel says ECHILD when no descendant is left: orphans come to the reaper.
    fn reap(&mut self) {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid == self.pid => {
                    let status = match status.terminating_signal() {
                        Some(signal) => ExitStatus::Signal(signal),
                        None => ExitStatus::Code(status.exit_status().unwrap_or_default()),
                    };
                    self.exit = Some((status, now_ns()));
                    self.watchers.outdate();
                }
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => return,
                Err(_) => {
                    if self.phase == Phase::Running {
                        self.phase = Phase::Ended;
                    }
                    return;
                }
            }
        }
    }

    fn serve(&mut self) {
        for (asker, op, payload) in self.watchers.receive() {
            if let Some(reply) = self.perform(asker, op, &payload) {
                self.watchers.reply(asker, reply);
            }
        }
        self.watchers.drop_gone();
    }

    fn perform(&mut self, asker: Asker, op: Op, payload: &[u8]) -> Option<Reply> {
        let unknown = |name: &str| Some(Reply::Refused(format!("unknown signal {name}")));
        match op {
            // Answered where it came in.
            Op::Watch => None,
            Op::Signal { signal: name } => {
                let Some(signal) = sys::signal_by_name(&name) else {
                    return unknown(&name);
                };
                Some(Reply::Signalled(self.signal(signal)))
            }
            Op::Kill {
                signal: name,
                grace_ms,
            } => {
                let Some(signal) = sys::signal_by_name(&name) else {
                    return unknown(&name);
                };
                self.begin_kill(signal, Duration::from_millis(grace_ms));
                if let Some(teardown) = &mut self.teardown {
                    teardown.add(asker);
                }
                None
            }
            Op::Input { .. } => Some(self.input.push(payload)),
            Op::CloseInput => {
                self.input.close();
                Some(Reply::Ok)
            }
        }
    }

    /// The first process, until it has been collected: only so long its number, and its group's, are its own.
    fn first(&self) -> Option<Pid> {
        (self.phase == Phase::Running && self.exit.is_none()).then_some(self.pid)
    }

    /// Delivers a signal as a terminal would: to the agent's process group, or to all in its sandbox.
    fn signal(&self, signal: Signal) -> colibri_shim::control::Delivery {
        use colibri_shim::control::Delivery;
        if let (Some(first), None) = (self.first(), self.wrapper) {
            return match kill_process_group(first, signal) {
                Ok(()) => Delivery {
                    sent: 1,
                    denied: Vec::new(),
                },
                Err(Errno::PERM) => Delivery {
                    sent: 0,
                    denied: vec![self.agent_pid()],
                },
                Err(_) => Delivery::default(),
            };
        }
        sys::signal_all(signal, None, self.wrapper).unwrap_or_default()
    }

    fn begin_kill(&mut self, signal: Signal, grace: Duration) {
        let now = Instant::now();
        self.runs.close();
        if self.phase != Phase::Running {
            // Between two runs, or at the end of one that could not be recorded yet.
            self.phase = Phase::Ended;
            self.next = Some(None);
        }
        // Whom this does not reach, KILL must.
        let _ = sys::signal_all(signal, self.first(), self.wrapper);
        match &mut self.teardown {
            Some(teardown) => teardown.shorten(now, grace),
            None => self.teardown = Some(Teardown::new(now, grace)),
        }
    }

    fn finish_kill(&mut self, reply: &Reply) {
        for asker in self
            .teardown
            .take()
            .into_iter()
            .flat_map(Teardown::into_askers)
        {
            self.watchers.reply(asker, reply.clone());
        }
    }

    /// Copies what is there, some chunks of each output in turn, so that neither starves the other or the requests.
    fn copy(&mut self, buffer: &mut [u8]) {
        let before = (self.ends(), self.stalls());
        let now = Instant::now();
        if self.next_retry.is_some_and(|at| now >= at) {
            self.next_retry = None;
            self.outputs.iter_mut().for_each(Stream::retry);
        }
        for _ in 0..BURST {
            let mut more = false;
            for output in &mut self.outputs {
                more |= output.copy(buffer);
            }
            if !more {
                break;
            }
        }
        for output in &mut self.outputs {
            output.sync_if_due(now);
        }
        if self.outputs.iter().any(|output| output.stalled().is_some()) && self.next_retry.is_none()
        {
            self.next_retry = Some(now + RETRY);
        }
        if (self.ends(), self.stalls()) != before {
            self.watchers.outdate();
        }
    }

    fn stalls(&self) -> [bool; 2] {
        let [stdout, stderr] = &self.outputs;
        [stdout.stalled().is_some(), stderr.stalled().is_some()]
    }

    /// All processes are gone: what is still in the pipes is saved, then the end of the run is recorded.
    /// Returns whether the agent has ended with it, and `exit.json` says so.
    fn settle(&mut self) -> bool {
        if let Some(kill) = &self.teardown {
            let reply = kill.verified();
            self.finish_kill(&reply);
        }
        let mut buffer = vec![0; CHUNK];
        for output in &mut self.outputs {
            // Bounded: a stranger that was handed the pipe could write for ever.
            for _ in 0..DRAIN {
                if !output.copy(&mut buffer) {
                    break;
                }
            }
            if output.stalled().is_some() {
                return false;
            }
            output.close();
        }
        if self.next_retry.is_some_and(|at| Instant::now() < at) {
            return false;
        }
        let (exit, exited_at_ns): End = match self.exit {
            Some((status, at)) => (Some(status), at),
            None => (None, now_ns()),
        };
        self.runs.finish();
        let next = match self.next {
            Some(next) => next,
            None => *self.next.insert(self.runs.next(exit)),
        };
        let to = self.ends();
        let recorded = self
            .runs
            .record((exit, exited_at_ns), to)
            .map_err(|error| format!("{} cannot be written: {error}", layout::RUNS));
        let end = match (&recorded, next) {
            (Ok(()), None) => {
                let record = self.runs.exit_record((exit, exited_at_ns), to);
                self.record_end(&record).map(|()| Some(record))
            }
            _ => recorded.map(|()| None),
        };
        match end {
            Err(reason) => {
                self.unrecorded = Some(reason);
                self.next_retry = Some(Instant::now() + RETRY);
                self.watchers.outdate();
                false
            }
            Ok(Some(record)) => {
                self.farewell(record);
                true
            }
            Ok(None) => {
                let wait = next.unwrap_or_default();
                self.unrecorded = None;
                self.waiting = Some(self.runs.describe(exit, wait));
                self.input.wait_for_next();
                self.phase = Phase::Waiting(Instant::now() + wait);
                self.next = None;
                self.watchers.outdate();
                false
            }
        }
    }

    /// Puts the journals and `exit.json` on the disk.
    fn record_end(&mut self, record: &ExitRecord) -> Result<(), String> {
        self.outputs
            .iter_mut()
            .try_for_each(Stream::sync)
            .map_err(|error| error.to_string())?;
        self.runs
            .sync()
            .map_err(|error| format!("{} cannot be put on the disk: {error}", layout::RUNS))?;
        record::replace(Path::new(layout::EXIT), record, Durability::Machine)
            .map_err(|error| format!("{} cannot be written: {error}", layout::EXIT))
    }

    /// The wait is over: the next run.
    fn start_again(&mut self) {
        self.exit = None;
        match self.runs.start(self.ends()) {
            Ok(agent) => {
                self.pid = agent.pid;
                self.wrapper = agent.wrapper;
                self.input.connect(agent.stdin);
                let [stdout, stderr] = &mut self.outputs;
                stdout.connect(agent.stdout);
                stderr.connect(agent.stderr);
                self.phase = Phase::Running;
                self.waiting = None;
                if let Err(error) = self.runs.announce(self.agent_pid()) {
                    // It is for those who look when this shim is gone; who asks it is told the truth.
                    let _ = writeln!(io::stderr(), "{} not written: {error}", layout::SHIM);
                }
            }
            Err(_) => self.phase = Phase::Ended,
        }
        self.watchers.outdate();
    }

    fn ends(&self) -> [u64; 2] {
        let [stdout, stderr] = &self.outputs;
        [stdout.end(), stderr.end()]
    }

    fn farewell(&mut self, record: ExitRecord) {
        self.runs.end();
        let _ = std::fs::remove_file(layout::CONTROL);
        self.watchers.farewell(record);
    }

    fn status(&self) -> Status {
        let [stdout, stderr] = &self.outputs;
        Status {
            stdout: stdout.end(),
            stderr: stderr.end(),
            stalled: stdout
                .stalled()
                .or(stderr.stalled())
                .or(self.unrecorded.as_ref())
                .cloned(),
            lingering: self.exit.is_some() && self.phase == Phase::Running,
            pid: self.first().map(|first| first.as_raw_nonzero().get()),
            run: self.runs.number(),
            run_from: self.runs.stdout_from(),
            waiting: self.waiting.clone(),
        }
    }
}
