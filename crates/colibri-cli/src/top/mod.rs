//! `colibri top`: a live table of all agents.
//!
//! `app`, `keys` and `columns` are the model and `view` draws it, all without I/O. `feed` receives updates from the
//! daemon, `screen` controls the terminal, and the loop here connects them.
//!
//! ```text
//! Table --attach--> Child --ended by Ctrl-C--> Table
//!                     \----ended-------------> Pause --key--> Table
//! Table --Ctrl-Z, SIGTSTP--> Stopped --SIGCONT--> Table
//! ```

mod app;
mod columns;
mod feed;
mod keys;
mod screen;
#[cfg(test)]
mod tests;
mod view;

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use colibri_client::Client;
use rustix::process::{Signal, getpgrp, getsid, kill_current_process_group};
use tokio::process::Child;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use self::app::{Action, App};
use self::feed::Update;
use self::screen::{Keys, Screen, restore};
use crate::args::Global;
use crate::connect;
use crate::error::CliError;
use crate::output;
use crate::signals::{self, SignalStream};

/// Interval at which ages are redrawn.
const TICK: Duration = Duration::from_secs(1);
/// Interval between measurements, each of which costs the daemon milliseconds.
const MEASURE_INTERVAL: Duration = Duration::from_secs(2);
/// Minimum interval between frames.
const FRAME_INTERVAL: Duration = Duration::from_millis(40);
/// Capacity of the queue of updates; when it is full, backpressure leaves further events in the daemon.
const UPDATE_QUEUE: usize = 256;
/// Time after the end of the child within which SIGINT belongs to the Ctrl-C that ended it.
const SAME_INTERRUPT: Duration = Duration::from_millis(500);
/// The handled signals.
const SIGNALS: [Signal; 6] = [
    Signal::TERM,
    Signal::HUP,
    Signal::INT,
    Signal::QUIT,
    Signal::TSTP,
    Signal::CONT,
];

/// The user of the terminal.
enum TerminalOwner {
    Table,
    /// `colibri attach`.
    Child(Child),
    /// The output of the ended child is shown until a key is pressed.
    Pause,
    /// The shell.
    Stopped,
}

struct Top {
    app: App,
    screen: Screen,
    owner: TerminalOwner,
    socket: PathBuf,
    client: Client,
    requests: JoinSet<Option<Update>>,
    needs_draw: bool,
    is_measuring: bool,
    /// Time until which SIGINT is attributed to the child.
    child_interrupt_until: Instant,
    /// Whether the child was interrupted, so that the table follows without a pause.
    is_child_interrupted: bool,
}

/// Shows the table until the user quits.
pub(crate) async fn top(global: &Global) -> Result<u8, CliError> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(CliError::NoTerminal);
    }
    let endpoint = connect::endpoint(global)?;
    let client = connect::connect_to(&endpoint).await?;
    let feed = feed::subscribe(&client).await?;
    let socket = endpoint.socket();
    let (sender, mut updates) = mpsc::channel(UPDATE_QUEUE);
    tokio::spawn(feed::follow(endpoint, feed.events, sender));
    let mut signals = SignalStream::install(&SIGNALS)?;
    let mut keys = Keys::new()?;
    let mut top = Top {
        app: App::new(feed.agents),
        screen: Screen::enter().map_err(terminal_error)?,
        owner: TerminalOwner::Table,
        socket,
        client,
        requests: JoinSet::new(),
        needs_draw: true,
        is_measuring: false,
        child_interrupt_until: Instant::now(),
        is_child_interrupted: false,
    };
    let mut tick = interval(TICK);
    let mut measure_tick = interval(MEASURE_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    measure_tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut draw_at = Instant::now();
    loop {
        let can_draw = top.needs_draw && matches!(top.owner, TerminalOwner::Table);
        let reads_keys = matches!(top.owner, TerminalOwner::Table | TerminalOwner::Pause);
        // Updates are last, so that a flood of them does not delay keys.
        tokio::select! {
            biased;
            signal = signals.next() => if let Some(code) = top.handle_signal(signal)? {
                return Ok(code);
            },
            status = child_exit(&mut top.owner) => top.handle_child_exit(status)?,
            () = sleep_until(draw_at), if can_draw => {
                top.needs_draw = false;
                draw_at = Instant::now() + FRAME_INTERVAL;
                top.draw().map_err(terminal_error)?;
            }
            event = keys.next(), if reads_keys => {
                let event = event.map_err(terminal_error)?;
                top.needs_draw = true;
                if matches!(top.owner, TerminalOwner::Pause) {
                    if event.is_key_press() {
                        top.return_to_table()?;
                    }
                } else if let Some(command) = top.app.handle(&event)
                    && top.execute(command)?
                {
                    return Ok(0);
                }
            }
            _ = tick.tick() => top.needs_draw = true,
            _ = measure_tick.tick() => top.measure(),
            Some(Ok(Some(update))) = top.requests.join_next() => top.apply(update),
            Some(update) = updates.recv() => top.apply(update),
        }
    }
}

fn terminal_error(source: io::Error) -> CliError {
    CliError::io("cannot use the terminal")(source)
}

/// Waits for the exit of the child; forever without one.
async fn child_exit(owner: &mut TerminalOwner) -> io::Result<ExitStatus> {
    match owner {
        TerminalOwner::Child(child) => child.wait().await,
        _ => std::future::pending().await,
    }
}

impl Top {
    fn draw(&mut self) -> io::Result<()> {
        let now = jiff::Timestamp::now();
        let app = &mut self.app;
        self.screen.terminal.draw(|frame| {
            app.layout(view::rows(app, frame.area().height));
            view::draw(frame, app, now, output::in_colour());
        })?;
        Ok(())
    }

    fn apply(&mut self, update: Update) {
        self.needs_draw = true;
        match update {
            Update::Connected(client, agents) => {
                self.client = client;
                self.app.lost = None;
                self.app.roster.replace(agents);
                self.measure();
            }
            Update::Disconnected(reason) => self.app.lost = Some(reason),
            Update::Event(event) => {
                if let Some(id) = self.app.roster.apply(&event) {
                    self.requests
                        .spawn(feed::get_agent(self.client.clone(), id));
                }
            }
            Update::Agent(agent) => self.app.roster.insert(*agent),
            Update::Usage(usage) => {
                self.is_measuring = false;
                if let Some(usage) = usage {
                    self.app.roster.apply_usage(&usage);
                }
            }
            Update::Message(message) => self.app.message = Some(message),
        }
    }

    /// Requests a measurement, unless one is in progress or the table is not visible.
    fn measure(&mut self) {
        let ids = self.app.ids_to_measure();
        let is_visible = matches!(self.owner, TerminalOwner::Table) && self.app.lost.is_none();
        if !self.is_measuring && is_visible && !ids.is_empty() {
            self.is_measuring = true;
            self.requests.spawn(feed::measure(self.client.clone(), ids));
        }
    }

    /// Executes a command of the model; returns `true` to quit.
    fn execute(&mut self, command: Action) -> Result<bool, CliError> {
        let client = self.client.clone();
        match command {
            Action::Quit => return Ok(true),
            Action::Suspend => self.suspend()?,
            Action::Redraw => self.screen.clear().map_err(terminal_error)?,
            Action::Attach(id) => self.attach(&id)?,
            Action::Prompt { id, text } => {
                drop(self.requests.spawn(feed::prompt(client, id, text)))
            }
            Action::Kill(id) => drop(self.requests.spawn(feed::kill(client, id))),
        }
        Ok(false)
    }

    fn attach(&mut self, id: &str) -> Result<(), CliError> {
        restore();
        match start_attach(&self.socket, id) {
            Ok(child) => {
                output::message(&format!("{id}; return with Ctrl-C"));
                self.owner = TerminalOwner::Child(child);
            }
            Err(error) => {
                self.return_to_table()?;
                self.app.message = Some(format!("cannot attach to {id}: {error}"));
            }
        }
        Ok(())
    }

    fn handle_child_exit(&mut self, status: io::Result<ExitStatus>) -> Result<(), CliError> {
        use std::os::unix::process::ExitStatusExt;
        self.child_interrupt_until = Instant::now() + SAME_INTERRUPT;
        let is_interrupted =
            status.is_ok_and(|status| status.signal() == Some(Signal::INT.as_raw()));
        if is_interrupted || self.is_child_interrupted {
            return self.return_to_table();
        }
        output::message("end of output; return with any key");
        self.screen.set_raw_mode().map_err(terminal_error)?;
        self.owner = TerminalOwner::Pause;
        Ok(())
    }

    fn return_to_table(&mut self) -> Result<(), CliError> {
        self.owner = TerminalOwner::Table;
        self.is_child_interrupted = false;
        self.needs_draw = true;
        self.screen.reenter().map_err(terminal_error)
    }

    /// Stops this process as a job, if there is a shell that can continue it.
    fn suspend(&mut self) -> Result<(), CliError> {
        let has_shell = getsid(None).is_ok_and(|session| session != getpgrp());
        if !has_shell {
            return self.screen.clear().map_err(terminal_error);
        }
        if matches!(self.owner, TerminalOwner::Table) {
            self.owner = TerminalOwner::Stopped;
        }
        restore();
        let _ = kill_current_process_group(Signal::STOP);
        Ok(())
    }

    /// Handles a signal; returns the exit code if it ends this process.
    fn handle_signal(&mut self, signal: Signal) -> Result<Option<u8>, CliError> {
        let is_for_child = matches!(self.owner, TerminalOwner::Child(_))
            || Instant::now() < self.child_interrupt_until;
        match signal {
            Signal::INT if is_for_child && matches!(self.owner, TerminalOwner::Pause) => {
                self.return_to_table()?;
            }
            Signal::INT | Signal::QUIT if is_for_child => {
                self.is_child_interrupted = matches!(self.owner, TerminalOwner::Child(_));
            }
            Signal::TSTP => self.suspend()?,
            Signal::CONT => match self.owner {
                TerminalOwner::Table | TerminalOwner::Stopped => self.return_to_table()?,
                TerminalOwner::Pause => self.screen.set_raw_mode().map_err(terminal_error)?,
                TerminalOwner::Child(_) => {}
            },
            _ => return Ok(Some(signals::exit_code(signal))),
        }
        Ok(None)
    }
}

/// Starts `colibri attach` on this terminal. It is killed when this process ends.
fn start_attach(socket: &Path, id: &str) -> io::Result<Child> {
    tokio::process::Command::new(std::env::current_exe()?)
        .arg("--socket")
        .arg(socket)
        .args(["--no-autostart", "attach", id])
        .kill_on_drop(true)
        .spawn()
}
