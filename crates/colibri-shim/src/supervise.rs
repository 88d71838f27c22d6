//! The loop that a shim lives in: pipes to journals, requests to answers, the dead to `exit.json`.
//!
//! States of an agent between its start and its end:
//!
//! ```text
//! Running -> Draining -> CleaningUp -> Recording -> (exit.json, end of the shim)
//!    ^                                     |
//!    +------- Preparing <------ Waiting <--+   with a restart policy, or when a restart is requested
//! ```

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use colibri_shim::control::{Delivery, Op, Reply, Request, Status, clock_ms};
use colibri_shim::layout;
use colibri_shim::record::{self, Durability, ExitRecord};
use colibri_types::{ExitReason, ExitStatus};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, wait};
use signal_hook::consts::{SIGCHLD, SIGTERM};

use crate::agent::Agent;
use crate::input::Input;
use crate::peer::Peer;
use crate::run_commands::RunCommands;
use crate::runs::{End, Runs};
use crate::stream::{CHUNK, Stream};
use crate::teardown::Teardown;
use crate::watchers::{Asker, Watchers};
use crate::{now_ns, sys};

/// How often a full disk is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// Grace of a shim that is itself asked to end, before KILL.
const OWN_GRACE: Duration = Duration::from_secs(5);
/// Maximum number of chunks saved after the last process is gone; a pipe holds far less.
const DRAIN: usize = 64;
/// Maximum number of chunks of each output that are copied in one iteration of the loop.
const BURST: usize = 16;
/// Polling interval for the start of a sandbox's program while a signal waits for it.
const STARTING: Duration = Duration::from_millis(2);
/// Maximum number of signals that wait for the program of a sandbox.
const MAX_DEFERRED: usize = 64;
/// How long output of a killed agent that cannot be stored is kept in memory and in the pipe.
const STORE: Duration = Duration::from_secs(5);
/// Interval at which the existence of the agent's directory is checked.
const LOOK: Duration = Duration::from_secs(1);

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

    /// Becomes readable when a child ends.
    pub(crate) fn child(&self) -> BorrowedFd<'_> {
        self.child.as_fd()
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
enum Phase {
    /// Processes of it live.
    Running,
    /// No process is left; the rest of the pipes is copied to the journals.
    Draining,
    /// The commands after the run are running.
    CleaningUp(RunCommands),
    /// The end of the run is being recorded; retried while the disk is full.
    Recording,
    /// The next run begins at this time.
    Waiting(Instant),
    /// The commands before the run are running.
    Preparing(RunCommands),
}

/// A signal for the program of a sandbox that has not started it yet.
struct Deferred {
    signal: Signal,
    then_continue: bool,
    asker: Option<Asker>,
    /// At this time of [`clock_ms`] its caller gives up, and it is dropped.
    expires_ms: Option<u64>,
}

pub(crate) struct Supervisor {
    runs: Runs,
    phase: Phase,
    /// What follows this run, once that is decided: the wait for the next, or nothing.
    next: Option<Option<Duration>>,
    /// A user requested the next run: it follows whatever the restart policy is.
    restart_requested: bool,
    /// For people, while the next run is waited for.
    waiting: Option<String>,
    pid: Pid,
    wrapper: Option<i32>,
    input: Input,
    outputs: [Stream; 2],
    watchers: Watchers,
    signals: Signals,
    /// How and when the first process ended.
    exit: Option<End>,
    /// Why Colibri is ending the run; absent if it is not.
    ending: Option<ExitReason>,
    teardown: Option<Teardown>,
    /// When a user first asked for its end.
    killed_at: Option<Instant>,
    /// Signals that wait for the program of a sandbox.
    deferred: Vec<Deferred>,
    /// The sandbox of this run has started its program. Checked only when a signal arrives.
    program_started: bool,
    /// The agent's directory; the working directory of this process.
    directory: PathBuf,
    /// The directory was removed: nothing more can be recorded in it.
    removed: bool,
    next_look: Instant,
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
        directory: PathBuf,
    ) -> Self {
        stdout.connect(agent.stdout);
        stderr.connect(agent.stderr);
        Self {
            runs,
            phase: Phase::Running,
            next: None,
            restart_requested: false,
            waiting: None,
            pid: agent.pid,
            wrapper: agent.wrapper,
            input: Input::new(agent.stdin),
            outputs: [stdout, stderr],
            watchers: Watchers::new(listener),
            signals,
            exit: None,
            ending: None,
            teardown: None,
            killed_at: None,
            deferred: Vec::new(),
            program_started: false,
            directory,
            removed: false,
            next_look: Instant::now() + LOOK,
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
            if take(&self.signals.child) && matches!(self.phase, Phase::Running) {
                self.reap();
            }
            if take(&self.signals.term) {
                self.runs.add_reason("its shim received SIGTERM".to_owned());
                self.begin_kill(Signal::TERM, OWN_GRACE, None);
            }
            self.serve();
            self.deliver_deferred();
            self.input.write();
            self.copy(&mut buffer);
            self.look_after_directory();
            let now = Instant::now();
            self.step_teardown(now);
            if self.runs.limit_strikes(now) {
                self.begin_kill(Signal::TERM, OWN_GRACE, Some(ExitReason::WallTime));
            }
            if self.advance(&mut buffer) {
                return Ok(());
            }
            if self.watchers.want_status() {
                let status = self.status();
                self.watchers.publish(status);
            }
        }
    }

    /// Advances a kill in progress. Outside of [`Phase::Running`] no process of the agent is left, and a signal would
    /// hit the commands before or after the run.
    fn step_teardown(&mut self, now: Instant) {
        if !matches!(self.phase, Phase::Running) {
            return;
        }
        let cgroup = self.runs.cgroup();
        let step = self.teardown.as_mut().map(|kill| kill.step(now, cgroup));
        if let Some(reply) = step.flatten() {
            self.finish_kill(&reply);
        }
    }

    /// Advances through the phases as far as possible without waiting. Returns whether the agent's end is recorded.
    fn advance(&mut self, buffer: &mut [u8]) -> bool {
        loop {
            let now = Instant::now();
            match &mut self.phase {
                Phase::Running => return false,
                Phase::Waiting(at) if now < *at => return false,
                Phase::Waiting(_) => {
                    self.exit = None;
                    self.ending = None;
                    self.program_started = false;
                    self.phase = Phase::Preparing(self.runs.begin(self.ends()));
                }
                Phase::Preparing(steps) => match steps.poll(now) {
                    None => return false,
                    Some(outcome) => self.start_run(outcome),
                },
                Phase::Draining => {
                    if !self.drain(buffer) {
                        return false;
                    }
                    self.phase = Phase::CleaningUp(self.runs.clean_up());
                }
                Phase::CleaningUp(steps) => match steps.poll(now) {
                    None => return false,
                    Some(outcome) => {
                        self.runs.cleaned_up(outcome);
                        self.phase = Phase::Recording;
                    }
                },
                Phase::Recording => {
                    if self.next_retry.is_some_and(|at| now < at) {
                        return false;
                    }
                    match self.record() {
                        Recorded::Ended => return true,
                        Recorded::NotYet => return false,
                        Recorded::Continues => {}
                    }
                }
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
        let (steps_output, phase_deadline) = match &self.phase {
            Phase::Waiting(at) => (None, Some(*at)),
            Phase::Preparing(steps) | Phase::CleaningUp(steps) => {
                (steps.stderr(), steps.deadline())
            }
            Phase::Running | Phase::Draining | Phase::Recording => (None, None),
        };
        fds.extend(steps_output.map(|output| PollFd::new(output, PollFlags::IN)));
        let deferred = (!self.deferred.is_empty()).then(|| Instant::now() + STARTING);
        let deadlines = [
            self.teardown
                .as_ref()
                .filter(|_| matches!(self.phase, Phase::Running))
                .map(Teardown::deadline),
            self.next_retry,
            self.runs.limit_at(),
            phase_deadline,
            deferred,
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
                    let (exit, derived) = match status.terminating_signal() {
                        Some(signal) => (ExitStatus::Signal(signal), ExitReason::Signalled),
                        None => (
                            ExitStatus::Code(status.exit_status().unwrap_or_default()),
                            ExitReason::Exited,
                        ),
                    };
                    self.exit = Some(End {
                        exit: Some(exit),
                        reason: self.ending.unwrap_or(derived),
                        at_ns: now_ns(),
                    });
                    self.watchers.outdate();
                }
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => return,
                Err(_) => {
                    self.phase = Phase::Draining;
                    return;
                }
            }
        }
    }

    fn serve(&mut self) {
        for (asker, request, payload) in self.watchers.receive() {
            if let Some(reply) = self.perform(asker, request, &payload) {
                self.watchers.reply(asker, reply);
            }
        }
        self.watchers.drop_gone();
        if self.watchers.is_alone() {
            self.next_look = self.next_look.min(Instant::now());
        }
    }

    fn perform(&mut self, asker: Asker, request: Request, payload: &[u8]) -> Option<Reply> {
        let unknown = |name: &str| Some(Reply::Refused(format!("unknown signal {name}")));
        match request.op {
            // Answered where it came in.
            Op::Watch => None,
            Op::Signal { signal: name, last } => {
                let Some(signal) = sys::signal_by_name(&name) else {
                    return unknown(&name);
                };
                if last {
                    self.end_with_this_run(Some(ExitReason::KilledByUser));
                }
                self.deliver_or_defer(Deferred {
                    signal,
                    then_continue: last,
                    asker: Some(asker),
                    expires_ms: request.expires_ms,
                })
                .map(Reply::Signalled)
            }
            Op::Kill {
                signal: name,
                grace_ms,
            } => {
                let Some(signal) = sys::signal_by_name(&name) else {
                    return unknown(&name);
                };
                let grace = Duration::from_millis(grace_ms);
                self.begin_kill(signal, grace, Some(ExitReason::KilledByUser));
                if let Some(teardown) = &mut self.teardown {
                    teardown.add(asker);
                }
                None
            }
            Op::Restart { grace_ms } => Some(self.restart(Duration::from_millis(grace_ms))),
            Op::Input { .. } => Some(self.input.push(payload)),
            Op::CloseInput => {
                self.input.close();
                Some(Reply::Ok)
            }
        }
    }

    /// The first process, until it has been collected: only so long its number, and its group's, are its own.
    fn first(&self) -> Option<Pid> {
        (matches!(self.phase, Phase::Running) && self.exit.is_none()).then_some(self.pid)
    }

    /// Delivers a signal as a terminal would: to the agent's process group, or to all in its sandbox.
    fn signal(&self, signal: Signal) -> Delivery {
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

    /// Delivers a signal now, or as soon as the sandbox has started the program that it is for.
    fn deliver_or_defer(&mut self, deferred: Deferred) -> Option<Delivery> {
        // KILL also works on a sandbox that is not set up yet. STOP would keep it from being set up.
        let is_kill = deferred.signal == Signal::KILL;
        if !is_kill && self.program_is_pending() && self.deferred.len() < MAX_DEFERRED {
            self.deferred.push(deferred);
            return None;
        }
        Some(self.deliver(&deferred))
    }

    fn deliver(&self, deferred: &Deferred) -> Delivery {
        let delivery = self.signal(deferred.signal);
        if deferred.then_continue {
            self.continue_all();
        }
        delivery
    }

    /// A stopped process takes a signal only when it goes on. Here the wrapper is not spared: one that is stopped does
    /// not see the end of its sandbox.
    fn continue_all(&self) {
        let _ = sys::signal_all(Signal::CONT, self.first(), None);
    }

    /// Returns whether the sandbox has not started its program yet; the kernel would discard a signal.
    fn program_is_pending(&mut self) -> bool {
        if self.wrapper.is_none() || self.program_started || self.first().is_none() {
            return false;
        }
        self.program_started = sys::sandbox_has_program();
        !self.program_started
    }

    fn deliver_deferred(&mut self) {
        if self.deferred.is_empty() {
            return;
        }
        let now = clock_ms();
        let is_late = |deferred: &Deferred| deferred.expires_ms.is_some_and(|at| now >= at);
        let (late, kept): (Vec<_>, Vec<_>) = self.deferred.drain(..).partition(is_late);
        self.deferred = kept;
        for asker in late.into_iter().filter_map(|deferred| deferred.asker) {
            self.watchers.reply(asker, Reply::Expired);
        }
        if self.deferred.is_empty() || self.program_is_pending() {
            return;
        }
        for deferred in std::mem::take(&mut self.deferred) {
            let delivery = self.deliver(&deferred);
            if let Some(asker) = deferred.asker {
                self.watchers.reply(asker, Reply::Signalled(delivery));
            }
        }
    }

    /// Makes the current run the last one. `reason` is recorded unless the run has already ended by itself.
    fn end_with_this_run(&mut self, reason: Option<ExitReason>) {
        self.runs.close();
        self.killed_at.get_or_insert_with(Instant::now);
        self.restart_requested = false;
        match &mut self.phase {
            Phase::Running => self.give_reason(reason),
            Phase::Waiting(_) => {
                if let (Some(end), Some(ExitReason::WallTime)) = (&mut self.exit, reason) {
                    end.reason = ExitReason::WallTime;
                }
                self.phase = Phase::Recording;
                self.next = Some(None);
            }
            Phase::Preparing(steps) => {
                steps.abort();
                self.runs.not_started("it was ended before");
                self.exit = Some(End {
                    exit: None,
                    reason: reason.unwrap_or(ExitReason::NotStarted),
                    at_ns: now_ns(),
                });
                self.phase = Phase::Draining;
                self.next = Some(None);
            }
            Phase::Draining | Phase::CleaningUp(_) | Phase::Recording => self.next = Some(None),
        }
    }

    fn give_reason(&mut self, reason: Option<ExitReason>) {
        if self.exit.is_none() {
            self.ending = self.ending.or(reason);
        }
    }

    fn begin_kill(&mut self, signal: Signal, grace: Duration, reason: Option<ExitReason>) {
        self.end_with_this_run(reason);
        self.begin_teardown(signal, grace);
    }

    /// Signals all processes of the run, and starts the grace period before KILL.
    fn begin_teardown(&mut self, signal: Signal, grace: Duration) {
        let now = Instant::now();
        let first = Deferred {
            signal,
            then_continue: !matches!(signal, Signal::STOP | Signal::TSTP | Signal::KILL),
            asker: None,
            expires_ms: None,
        };
        if signal != Signal::KILL && self.program_is_pending() {
            self.deferred.push(first);
        } else if matches!(self.phase, Phase::Running) {
            // Processes that this signal does not reach get KILL after the grace period.
            let _ = sys::signal_all(signal, self.first(), self.wrapper);
            if first.then_continue {
                self.continue_all();
            }
        }
        match &mut self.teardown {
            Some(teardown) => teardown.shorten(now, grace),
            None => self.teardown = Some(Teardown::new(now, grace)),
        }
    }

    /// Ends the current run; the next one starts immediately.
    fn restart(&mut self, grace: Duration) -> Reply {
        if self.runs.is_closing() {
            return Reply::Refused("the agent is being ended".to_owned());
        }
        self.restart_requested = true;
        match &mut self.phase {
            Phase::Running => {
                self.give_reason(Some(ExitReason::KilledByUser));
                self.begin_teardown(Signal::TERM, grace);
            }
            Phase::Waiting(at) => *at = Instant::now(),
            // The run that is being prepared is the requested one.
            Phase::Preparing(_) => self.restart_requested = false,
            Phase::Draining | Phase::CleaningUp(_) | Phase::Recording => self.next = None,
        }
        Reply::Ok
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
        if self.outputs.iter().any(|output| output.stalled().is_some())
            && self.next_retry.is_none()
            && !self.is_removed()
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

    /// Copies the rest of the pipes after the last process has ended. Returns whether all of it is saved.
    fn drain(&mut self, buffer: &mut [u8]) -> bool {
        if let Some(kill) = &self.teardown {
            let reply = kill.verified();
            self.finish_kill(&reply);
        }
        for deferred in std::mem::take(&mut self.deferred) {
            if let Some(asker) = deferred.asker {
                self.watchers
                    .reply(asker, Reply::Signalled(Delivery::default()));
            }
        }
        let given_up = self.killed_at.is_some_and(|at| at.elapsed() >= STORE);
        let mut lost = false;
        for output in &mut self.outputs {
            // Bounded: a process outside of the agent that received the pipe could write forever.
            for _ in 0..DRAIN {
                if !output.copy(buffer) {
                    break;
                }
            }
            if output.stalled().is_some() && given_up {
                output.discard();
                lost = true;
            }
            if output.stalled().is_some() {
                return false;
            }
            output.close();
        }
        if lost {
            self.runs.add_reason(
                "the rest of its output could not be stored after it was killed, and is lost"
                    .to_owned(),
            );
        }
        true
    }

    /// Records the end of the run, and the end of the agent if it was the last run.
    fn record(&mut self) -> Recorded {
        if let Some(kill) = &self.teardown {
            let reply = kill.verified();
            self.finish_kill(&reply);
        }
        let end = *self.exit.get_or_insert(End {
            exit: None,
            reason: ExitReason::Lost,
            at_ns: now_ns(),
        });
        let next = match self.next {
            Some(next) => next,
            None if self.restart_requested => *self.next.insert(Some(Duration::ZERO)),
            None => *self.next.insert(self.runs.next(end.exit)),
        };
        let to = self.ends();
        let recorded = self
            .runs
            .record(end, to, next.is_none())
            .map_err(|error| format!("{} cannot be written: {error}", layout::RUNS));
        let ended = match (&recorded, next) {
            (Ok(()), None) => {
                let record = self.runs.exit_record(end, to);
                self.record_end(&record).map(|()| Some(record))
            }
            _ => recorded.map(|()| None),
        };
        match ended {
            Err(_) if self.is_removed() => {
                // Nothing can be stored: the daemon gets the record and keeps it in memory.
                self.runs.add_reason(format!(
                    "its directory {} was removed while it ran: its output and the record of its end are lost",
                    self.directory.display()
                ));
                let record = self.runs.exit_record(end, to);
                self.farewell(record);
                Recorded::Ended
            }
            Err(reason) => {
                self.unrecorded = Some(reason);
                self.next_retry = Some(Instant::now() + RETRY);
                self.watchers.outdate();
                Recorded::NotYet
            }
            Ok(Some(record)) => {
                self.farewell(record);
                Recorded::Ended
            }
            Ok(None) => {
                let wait = next.unwrap_or_default();
                self.unrecorded = None;
                self.waiting = Some(self.runs.describe(end.exit, wait));
                self.input.wait_for_next();
                self.phase = Phase::Waiting(Instant::now() + wait);
                self.next = None;
                self.restart_requested = false;
                self.watchers.outdate();
                Recorded::Continues
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

    /// Executes the program of the run after the commands before it have ended.
    fn start_run(&mut self, prepared: Result<(), String>) {
        let started = prepared.and_then(|()| self.runs.start().map_err(|error| error.to_string()));
        match started {
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
                    // The file is read only when this shim no longer runs; until then the shim reports the pid itself.
                    let _ = writeln!(io::stderr(), "{} not written: {error}", layout::SHIM);
                }
            }
            Err(error) => {
                self.runs.not_started(&error);
                self.exit = Some(End {
                    exit: None,
                    reason: ExitReason::NotStarted,
                    at_ns: now_ns(),
                });
                self.phase = Phase::Draining;
            }
        }
        self.watchers.outdate();
    }

    /// Checks whether the directory was removed. Without directory and connection the shim is unreachable for good, so
    /// it ends its agent.
    fn look_after_directory(&mut self) {
        let now = Instant::now();
        if now < self.next_look || self.runs.is_closing() {
            return;
        }
        self.next_look = now + LOOK;
        if self.is_removed() && self.watchers.is_alone() {
            self.begin_kill(Signal::TERM, OWN_GRACE, None);
        }
    }

    /// Returns whether the agent's directory was removed. If so, output is read and discarded, so that the agent does
    /// not block.
    fn is_removed(&mut self) -> bool {
        if !self.removed && is_working_directory_removed() {
            self.removed = true;
            self.outputs.iter_mut().for_each(Stream::discard);
            self.watchers.outdate();
        }
        self.removed
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
            stalled: match self.removed {
                true => Some(format!(
                    "its directory {} was removed; its output since then is lost",
                    self.directory.display()
                )),
                false => stdout
                    .stalled()
                    .or(stderr.stalled())
                    .or(self.unrecorded.as_ref())
                    .cloned(),
            },
            lingering: self.exit.is_some() && matches!(self.phase, Phase::Running),
            pid: self.first().map(|first| first.as_raw_nonzero().get()),
            run: self.runs.number(),
            run_from: self.runs.stdout_from(),
            waiting: self.waiting.clone(),
        }
    }
}

/// Result of recording the end of a run.
enum Recorded {
    /// The agent has ended.
    Ended,
    /// Another run follows.
    Continues,
    /// Recording failed and is retried.
    NotYet,
}

/// Returns whether the working directory was removed (rmdir(2)). A renamed directory still accepts records.
fn is_working_directory_removed() -> bool {
    std::env::current_dir().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}
