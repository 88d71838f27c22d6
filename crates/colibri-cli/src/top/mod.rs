//! `colibri top`: a live table of all agents.
//!
//! `app`, `keys` and `columns` are the model and `view` the screen, both pure; `feed` brings news from the daemon,
//! `screen` has the terminal, and the loop here moves what comes between them.

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
use std::time::Duration;

use colibri_client::Client;
use rustix::process::{self, getpgrp, getsid, kill_current_process_group};
use tokio::process::Child;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use self::app::{App, Command, Link};
use self::feed::News;
use self::screen::{Keys, Screen, give_back};
use crate::args::Global;
use crate::connect;
use crate::error::CliError;
use crate::output;

/// Ages are shown in seconds.
const TICK: Duration = Duration::from_secs(1);
/// A look at all processes of the host costs milliseconds.
const MEASURE: Duration = Duration::from_secs(2);
/// However much happens, the screen is drawn no more often.
const BETWEEN_DRAWS: Duration = Duration::from_millis(40);
/// News that wait, before the daemon waits.
const NEWS: usize = 256;
/// A Ctrl-C ends the child that has the terminal and comes to us too, sometimes a little later. As a key of ours it
/// would be no signal.
const SAME_INTERRUPT: Duration = Duration::from_millis(500);

/// Who has the terminal.
enum Front {
    Table,
    /// `colibri` itself, with another command.
    Child(Child),
    /// What that has printed is read, until a key.
    Pause,
    /// The shell.
    Stopped,
}

struct Top {
    app: App,
    front: Front,
    socket: PathBuf,
    client: Client,
    news: mpsc::Sender<News>,
    in_colour: bool,
    changed: bool,
    measuring: bool,
    /// Until then an interrupt was the child's.
    uninterrupted: Instant,
    /// The child was interrupted: whoever did it wants the table again.
    interrupted: bool,
}

/// Shows the table until it is quit.
pub(crate) async fn top(global: &Global) -> Result<u8, CliError> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(CliError::NoTerminal);
    }
    let endpoint = connect::endpoint(global)?;
    let client = endpoint.connect_or_start(output::link).await?;
    let (events, agents) = feed::link(&client).await?;
    let socket = endpoint.socket();
    let (sender, mut news) = mpsc::channel(NEWS);
    tokio::spawn(feed::follow(endpoint, events, sender.clone()));
    let mut top = Top {
        app: App::new(agents),
        front: Front::Table,
        socket,
        client,
        news: sender,
        in_colour: output::in_colour(),
        changed: true,
        measuring: false,
        uninterrupted: Instant::now(),
        interrupted: false,
    };
    let mut signals = Signals::watch()?;
    let mut keys = Keys::new().map_err(CliError::Runtime)?;
    let mut screen = Screen::take().map_err(terminal)?;
    let mut tick = interval(TICK);
    let mut measure = interval(MEASURE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    measure.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut draw_at = Instant::now();
    loop {
        let drawing = top.changed && matches!(top.front, Front::Table);
        let reading = matches!(top.front, Front::Table | Front::Pause);
        // In this order: news without end keep nobody from the keys.
        tokio::select! {
            biased;
            number = signals.next() => if let Some(code) = top.signalled(number, &mut screen)? {
                return Ok(code);
            },
            status = ended(&mut top.front) => top.after(status, &mut screen)?,
            () = sleep_until(draw_at), if drawing => {
                top.changed = false;
                draw_at = Instant::now() + BETWEEN_DRAWS;
                top.draw(&mut screen).map_err(terminal)?;
            }
            event = keys.next(), if reading => {
                let event = event.map_err(terminal)?;
                top.changed = true;
                if matches!(top.front, Front::Pause) {
                    if event.is_key_press() {
                        top.back(&mut screen)?;
                    }
                } else if let Some(command) = top.app.event(&event)
                    && top.perform(command, &mut screen)?
                {
                    return Ok(0);
                }
            }
            _ = tick.tick() => top.changed = true,
            _ = measure.tick() => top.measure(),
            Some(news) = news.recv() => top.take(news),
        }
    }
}

fn terminal(source: io::Error) -> CliError {
    CliError::Io {
        doing: "using the terminal",
        source,
    }
}

/// The end of the child that has the terminal; never, where none has.
async fn ended(front: &mut Front) -> io::Result<std::process::ExitStatus> {
    match front {
        Front::Child(child) => child.wait().await,
        _ => std::future::pending().await,
    }
}

impl Top {
    fn draw(&mut self, screen: &mut Screen) -> io::Result<()> {
        let now = jiff::Timestamp::now();
        let Self { app, in_colour, .. } = self;
        screen.terminal.draw(|frame| {
            app.fit(view::rows(app, frame.area().height));
            view::draw(frame, app, now, *in_colour);
        })?;
        Ok(())
    }

    fn take(&mut self, news: News) {
        self.changed = true;
        match news {
            News::Live(client, agents) => {
                self.client = client;
                self.app.live(agents);
                self.measure();
            }
            News::Lost(why) => self.app.lost(&why),
            News::Told(event) => {
                if let Some(Command::Ask(id)) = self.app.told(&event) {
                    self.spawn(feed::ask(self.client.clone(), id));
                }
            }
            News::Agent(agent) => self.app.agent(*agent),
            News::Measured(result) => {
                self.measuring = false;
                self.app.measured(&result);
            }
            News::Unmeasured => self.measuring = false,
            News::Said(message) => self.app.say(message),
        }
    }

    fn spawn(&self, call: impl Future<Output = Option<News>> + Send + 'static) {
        let news = self.news.clone();
        tokio::spawn(async move {
            if let Some(answer) = call.await {
                let _ = news.send(answer).await;
            }
        });
    }

    /// Asks what agents use, unless the last answer is still waited for or nobody looks.
    fn measure(&mut self) {
        let ids = self.app.to_measure();
        let looking = matches!(self.front, Front::Table) && self.app.link == Link::Live;
        if !self.measuring && looking && !ids.is_empty() {
            self.measuring = true;
            self.spawn(feed::measure(self.client.clone(), ids));
        }
    }

    /// Does what the model wants; `true` to end.
    fn perform(&mut self, command: Command, screen: &mut Screen) -> Result<bool, CliError> {
        let client = self.client.clone();
        match command {
            Command::Quit => return Ok(true),
            Command::Suspend => self.stop(screen)?,
            Command::Redraw => screen.clear().map_err(terminal)?,
            Command::Attach(id) => self.attach(&id, screen)?,
            Command::Prompt { id, text } => self.spawn(feed::prompt(client, id, text)),
            Command::Kill(id) => self.spawn(feed::kill(client, id)),
            Command::Ask(id) => self.spawn(feed::ask(client, id)),
        }
        Ok(false)
    }

    /// Leaves the terminal to a command that follows the agent.
    fn attach(&mut self, id: &str, screen: &mut Screen) -> Result<(), CliError> {
        give_back();
        let started = follow(&self.socket, id);
        match started {
            Ok(child) => {
                output::note(&format!("{id}; Ctrl-C comes back"));
                self.front = Front::Child(child);
            }
            Err(error) => {
                self.back(screen)?;
                self.app.say(format!("not attached: {error}"));
            }
        }
        Ok(())
    }

    /// That command has ended.
    fn after(
        &mut self,
        status: io::Result<std::process::ExitStatus>,
        screen: &mut Screen,
    ) -> Result<(), CliError> {
        use std::os::unix::process::ExitStatusExt;
        self.uninterrupted = Instant::now() + SAME_INTERRUPT;
        let killed =
            status.is_ok_and(|status| status.signal() == Some(process::Signal::INT.as_raw()));
        if killed || self.interrupted {
            return self.back(screen);
        }
        output::note("that was all; any key goes back to the table");
        screen.pause().map_err(terminal)?;
        self.front = Front::Pause;
        Ok(())
    }

    /// The table again.
    fn back(&mut self, screen: &mut Screen) -> Result<(), CliError> {
        self.front = Front::Table;
        self.interrupted = false;
        self.changed = true;
        screen.take_again().map_err(terminal)
    }

    /// Stops as a job, where there is a shell that could continue it.
    fn stop(&mut self, screen: &mut Screen) -> Result<(), CliError> {
        let has_shell = getsid(None).is_ok_and(|session| session != getpgrp());
        if !has_shell {
            return screen.clear().map_err(terminal);
        }
        if matches!(self.front, Front::Table) {
            self.front = Front::Stopped;
        }
        give_back();
        let _ = kill_current_process_group(process::Signal::STOP);
        Ok(())
    }

    /// A signal has come; the exit code, where it ends us.
    fn signalled(&mut self, number: i32, screen: &mut Screen) -> Result<Option<u8>, CliError> {
        let childs = matches!(self.front, Front::Child(_)) || Instant::now() < self.uninterrupted;
        match process::Signal::from_named_raw(number) {
            Some(process::Signal::INT) if childs && matches!(self.front, Front::Pause) => {
                self.back(screen)?;
            }
            Some(process::Signal::INT | process::Signal::QUIT) if childs => {
                self.interrupted = matches!(self.front, Front::Child(_));
            }
            Some(process::Signal::TSTP) => self.stop(screen)?,
            Some(process::Signal::CONT) => match self.front {
                Front::Table | Front::Stopped => self.back(screen)?,
                Front::Pause => screen.pause().map_err(terminal)?,
                Front::Child(_) => {}
            },
            _ => return Ok(Some(u8::try_from(128 + number).unwrap_or(1))),
        }
        Ok(None)
    }
}

/// `colibri` with the command that follows an agent, on our terminal. It ends when we do.
fn follow(socket: &Path, id: &str) -> io::Result<Child> {
    tokio::process::Command::new(std::env::current_exe()?)
        .arg("--socket")
        .arg(socket)
        .args(["--no-autostart", "attach", id])
        .kill_on_drop(true)
        .spawn()
}

/// Signals that end, stop and continue.
struct Signals(Vec<(i32, Signal)>);

impl Signals {
    fn watch() -> Result<Self, CliError> {
        let wanted = [
            process::Signal::TERM,
            process::Signal::HUP,
            process::Signal::INT,
            process::Signal::QUIT,
            process::Signal::TSTP,
            process::Signal::CONT,
        ];
        let mut signals = Vec::new();
        for number in wanted.map(process::Signal::as_raw) {
            let signal = signal(SignalKind::from_raw(number));
            signals.push((number, signal.map_err(CliError::io("watching signals"))?));
        }
        Ok(Self(signals))
    }

    /// The number of the next one.
    async fn next(&mut self) -> i32 {
        std::future::poll_fn(|context| {
            for (number, signal) in &mut self.0 {
                if signal.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*number);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}
