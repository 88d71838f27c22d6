//! `colibri attach`: an agent as it works, for people; what they type is said to it.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use colibri_client::glasspane::{Command, Delivery, Item, Painter, Transcript, encode};
use colibri_client::{
    Agent, AgentState, Client, ClientError, ExitEvent, Follow, Followed, Output, StateEvent, Stream,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::args::{Attach, Global};
use crate::commands::PATIENCE;
use crate::connect::{endpoint, find};
use crate::error::CliError;
use crate::output;
use crate::run::{BROKEN_PIPE, exit_code};
use crate::signals::Signals;
use crate::sink::{Failure, Piece, Sink};

/// How much of what each output already holds is shown, in bytes.
const HISTORY: u64 = 1 << 20;

/// Maximum time to finish writing queued output when the user detaches.
const FAREWELL: Duration = Duration::from_millis(200);

/// Shows an agent until it has ended, then exits with its code; a signal (Ctrl-C is SIGINT) detaches. As in `run`, the
/// loop never blocks.
pub(crate) async fn attach(global: &Global, options: Attach) -> Result<u8, CliError> {
    let endpoint = endpoint(global)?;
    let client = endpoint.connect_or_start(output::link).await?;
    let agent = find(&client, &options.id).await?;
    let mut signals = Signals::watch()?;
    let (mut sink, mut failures) = Sink::start()?;
    let mut typed = match options.no_input || agent.exited_at.is_some() {
        true => None,
        false => Some(crate::input::lines()?),
    };
    let mut view = View::new(&agent, &options);
    let wanted = Follow {
        id: agent.id.clone(),
        stream: None,
        stdout: view.stdout,
        stderr: view.stderr,
        timed: false,
    };
    let mut following = endpoint.follow(client, wanted);
    let client = following.client();
    let mut telling: Option<JoinHandle<Result<(), ClientError>>> = None;
    let mut end: Option<ExitEvent> = None;
    loop {
        let is_free = view.pieces.is_empty();
        tokio::select! {
            biased;
            signal = signals.next() => {
                sink.close();
                detach(&mut failures, &mut view, &agent).await;
                // Ctrl-C is the normal way to detach: exit with 0. Other signals exit with 128+N.
                return Ok(if signal.name == "INT" { 0 } else { signal.exit_code() });
            }
            failure = failures.recv() => {
                if let Some(failure) = failure {
                    if failure.is_reader_gone() {
                        return Ok(BROKEN_PIPE);
                    }
                    let doing = "writing what the agent says; the agent goes on";
                    return Err(CliError::io(doing)(failure.error));
                }
                let Some(exit) = end else { return Ok(1) };
                output::note(&format!("{} ended: {}", agent.id, output::ending(exit.exit)));
                return Ok(exit_code(&exit));
            }
            permit = sink.room(), if !is_free => {
                if let (Some(permit), Some(piece)) = (permit, view.pieces.pop_front()) {
                    drop(permit.send(piece));
                }
                if view.pieces.is_empty() && end.is_some() {
                    sink.close();
                }
            }
            event = following.next(), if is_free && end.is_none() => match event {
                Some(Ok(Followed::Output(output))) => view.output(output),
                Some(Ok(Followed::State(change))) => view.state(&change),
                Some(Ok(Followed::Exit(exit))) => {
                    view.finish();
                    end = Some(exit);
                    if view.pieces.is_empty() {
                        sink.close();
                    }
                }
                Some(Ok(Followed::Link(note))) => view.say(&note.to_string()),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.into()),
                None => return Ok(1),
            },
            line = next_line(&mut typed), if telling.is_none() => match line {
                None => typed = None,
                Some(line) => telling = view.tell(&client, &agent, &line),
            },
            outcome = told(&mut telling) => {
                telling = None;
                if let Err(error) = outcome {
                    view.say(&error.to_string());
                }
            }
        }
    }
}

/// Detaches: writes queued output for at most [`FAREWELL`], then prints the notice.
async fn detach(failures: &mut mpsc::UnboundedReceiver<Failure>, view: &mut View, agent: &Agent) {
    let written = async { while failures.recv().await.is_some() {} };
    if tokio::time::timeout(FAREWELL, written).await.is_ok() {
        view.pieces.clear();
        view.finish();
        for piece in view.pieces.drain(..) {
            output::show(io::stdout(), &piece.bytes);
        }
    }
    output::note(&format!(
        "detached; {id} goes on, and colibri attach {id} comes back to it",
        id = agent.id
    ));
}

async fn next_line(typed: &mut Option<mpsc::Receiver<String>>) -> Option<String> {
    match typed {
        Some(typed) => typed.recv().await,
        None => std::future::pending().await,
    }
}

/// Whether the agent took what it was told last.
async fn told(
    telling: &mut Option<JoinHandle<Result<(), ClientError>>>,
) -> Result<(), ClientError> {
    match telling {
        Some(telling) => telling.await.unwrap_or(Ok(())),
        None => std::future::pending().await,
    }
}

/// What is on the screen.
struct View {
    raw: bool,
    transcript: Transcript,
    painter: Painter,
    /// Offset in each output at which the view starts.
    stdout: u64,
    stderr: u64,
    told: Option<AgentState>,
    /// Pieces to write, in order.
    pieces: VecDeque<Piece>,
}

impl View {
    fn new(agent: &Agent, options: &Attach) -> Self {
        let from = |length: u64| match options.all {
            true => 0,
            false => length.saturating_sub(HISTORY),
        };
        let mut view = Self {
            raw: options.raw,
            transcript: Transcript::new(agent.runtime),
            painter: Painter::new(output::in_colour()),
            stdout: from(agent.stdout_bytes),
            stderr: from(agent.stderr_bytes),
            told: None,
            pieces: VecDeque::new(),
        };
        if view.stdout > 0 {
            view.transcript.cut();
            output::note(&format!(
                "only the end of what {} has written is shown; --all shows the rest",
                agent.id
            ));
        }
        view
    }

    fn write(&mut self, bytes: Vec<u8>, stream: Stream) {
        if !bytes.is_empty() {
            self.pieces.push_back(Piece { stream, bytes });
        }
    }

    fn output(&mut self, output: Output) {
        if output.gap > 0 {
            if output.stream == Stream::Stdout {
                self.transcript.cut();
            }
            self.say(&format!("{} bytes are no longer kept", output.gap));
        }
        if self.raw {
            return self.write(output.bytes, output.stream);
        }
        let items = match output.stream {
            Stream::Stdout => self.transcript.stdout(&output.bytes),
            Stream::Stderr => self.transcript.stderr(&output.bytes),
        };
        let text: String = items.iter().map(|item| self.painter.paint(item)).collect();
        self.write(text.into_bytes(), Stream::Stdout);
    }

    /// Only what the agent's own events do not show.
    fn state(&mut self, change: &StateEvent) {
        if self.told.replace(change.state) == Some(change.state)
            || change.state != AgentState::Stalled
            || self.raw
        {
            return;
        }
        let why = output::plain(change.last_error.as_deref().unwrap_or_default(), 300);
        let text = self.painter.paint(&Item::Notice(format!("stalled: {why}")));
        self.write(text.into_bytes(), Stream::Stdout);
    }

    /// Ends the line that is under way.
    fn finish(&mut self) {
        let text = self.painter.finish();
        self.write(text.as_bytes().to_vec(), Stream::Stdout);
    }

    /// Queues a message for stderr, after the queued output.
    fn say(&mut self, message: &str) {
        self.finish();
        let line = format!("colibri: {message}\n");
        self.write(line.into_bytes(), Stream::Stderr);
    }

    /// Begins to tell the agent what was typed: the answer, where it asks.
    fn tell(
        &mut self,
        client: &watch::Receiver<Client>,
        agent: &Agent,
        line: &str,
    ) -> Option<JoinHandle<Result<(), ClientError>>> {
        let delivery = Delivery::while_watching(agent.runtime);
        let command = match self.transcript.question() {
            Some(question) => Command::Answer(question, line),
            None if line.trim().is_empty() => return None,
            None => Command::Prompt(line, delivery),
        };
        match encode(agent.runtime, "attached", &command) {
            Err(error) => {
                self.say(&error.to_string());
                None
            }
            Ok(bytes) => {
                self.transcript.answered();
                let (client, id) = (client.borrow().clone(), agent.id.clone());
                Some(tokio::spawn(async move {
                    client.send_all(&id, &bytes, Some(PATIENCE)).await
                }))
            }
        }
    }
}
