//! `colibri attach`: an agent as it works, for people; what they type is said to it.

use std::io::{self, Write};

use colibri_client::glasspane::{Command, Delivery, Item, Painter, Transcript, encode};
use colibri_client::{
    Agent, AgentState, Client, ClientError, Events, Notification, OutputEvent, StateEvent, Stream,
    StreamChoice, SubscribeParams,
};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::args::{Attach, Global};
use crate::commands::PATIENCE;
use crate::connect::{connect, find};
use crate::error::CliError;
use crate::output;
use crate::run::{BROKEN_PIPE, exit_code};

/// How much of what each output already holds is shown, in bytes.
const HISTORY: u64 = 1 << 20;

/// Shows an agent until it has ended, and exits as it does, or until Ctrl-C.
pub(crate) async fn attach(global: &Global, options: Attach) -> Result<u8, CliError> {
    let client = connect(global).await?;
    let agent = find(&client, &options.id).await?;
    let mut view = View::new(&agent, &options);
    let mut outputs = Outputs {
        stdout: Some(follow(&client, &agent, Stream::Stdout, view.stdout).await?),
        stderr: Some(follow(&client, &agent, Stream::Stderr, view.stderr).await?),
    };
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(CliError::io("watching signals"))?;
    let mut typed = match options.no_input || agent.exited_at.is_some() {
        true => None,
        false => Some(read_input()),
    };
    let mut telling: Option<JoinHandle<Result<(), ClientError>>> = None;
    let code = loop {
        let shown = tokio::select! {
            event = outputs.next() => match event {
                None => return Err(CliError::Lost(agent.id.clone())),
                Some(Notification::AgentExit(exit)) if outputs.ended() => {
                    view.finish();
                    output::note(&format!("{} ended: {}", agent.id, output::ending(exit.exit)));
                    break exit_code(&exit);
                }
                Some(Notification::AgentOutput(chunk)) => view.output(chunk),
                Some(Notification::AgentState(change)) => view.state(&change),
                Some(_) => Ok(()),
            },
            line = next_line(&mut typed), if telling.is_none() => {
                match line {
                    None => typed = None,
                    Some(line) => telling = view.tell(&client, &agent, &line),
                }
                Ok(())
            }
            outcome = told(&mut telling) => {
                telling = None;
                if let Err(error) = outcome {
                    view.finish();
                    output::complain(&error.to_string());
                }
                Ok(())
            }
            _ = interrupt.recv() => {
                view.finish();
                output::note(&format!(
                    "detached; {id} goes on, and colibri attach {id} comes back to it",
                    id = agent.id
                ));
                break 0;
            }
        };
        match shown {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break BROKEN_PIPE,
            other => other.map_err(CliError::io("writing what the agent says"))?,
        }
    };
    Ok(code)
}

/// Both outputs of an agent; each ends with an event of its own.
struct Outputs {
    stdout: Option<Events>,
    stderr: Option<Events>,
}

impl Outputs {
    async fn next(&mut self) -> Option<Notification> {
        let (event, of) = tokio::select! {
            event = next_event(&mut self.stdout) => (event, &mut self.stdout),
            event = next_event(&mut self.stderr) => (event, &mut self.stderr),
        };
        if matches!(event, Some(Notification::AgentExit(_))) {
            *of = None;
        }
        event
    }

    fn ended(&self) -> bool {
        self.stdout.is_none() && self.stderr.is_none()
    }
}

/// The next event, never one of what has ended.
async fn next_event(events: &mut Option<Events>) -> Option<Notification> {
    match events {
        Some(events) => events.next().await,
        None => std::future::pending().await,
    }
}

async fn follow(
    client: &Client,
    agent: &Agent,
    stream: Stream,
    from: u64,
) -> Result<Events, CliError> {
    let params = SubscribeParams {
        id: Some(agent.id.clone()),
        stream: Some(match stream {
            Stream::Stdout => StreamChoice::Stdout,
            Stream::Stderr => StreamChoice::Stderr,
        }),
        from_offset: Some(from),
        ..SubscribeParams::default()
    };
    Ok(client.subscribe(params).await?)
}

/// Lines from standard input, until its end.
fn read_input() -> mpsc::Receiver<String> {
    let (lines, typed) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut input = BufReader::new(tokio::io::stdin());
        let mut line = Vec::new();
        while let Ok(1..) = input.read_until(b'\n', &mut line).await {
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches(['\n', '\r']).to_owned();
            line.clear();
            if lines.send(text).await.is_err() {
                return;
            }
        }
    });
    typed
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
    /// Where the next byte of each output is.
    stdout: u64,
    stderr: u64,
    told: Option<AgentState>,
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

    fn output(&mut self, chunk: OutputEvent) -> io::Result<()> {
        let bytes = chunk.data.into_bytes().map_err(io::Error::other)?;
        let place = match chunk.stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let gap = chunk.offset.saturating_sub(*place);
        *place = chunk.offset + bytes.len() as u64;
        if gap > 0 {
            if chunk.stream == Stream::Stdout {
                self.transcript.cut();
            }
            self.finish();
            output::note(&format!("{gap} bytes are no longer kept"));
        }
        if self.raw {
            return write(&bytes, chunk.stream);
        }
        let items = match chunk.stream {
            Stream::Stdout => self.transcript.stdout(&bytes),
            Stream::Stderr => self.transcript.stderr(&bytes),
        };
        let text: String = items.iter().map(|item| self.painter.paint(item)).collect();
        write(text.as_bytes(), Stream::Stdout)
    }

    /// Only what the agent's own events do not show.
    fn state(&mut self, change: &StateEvent) -> io::Result<()> {
        if self.told.replace(change.state) == Some(change.state)
            || change.state != AgentState::Stalled
            || self.raw
        {
            return Ok(());
        }
        let why = output::plain(change.last_error.as_deref().unwrap_or_default(), 300);
        let text = self.painter.paint(&Item::Notice(format!("stalled: {why}")));
        write(text.as_bytes(), Stream::Stdout)
    }

    /// Ends the line that is under way.
    fn finish(&mut self) {
        let _ = write(self.painter.finish().as_bytes(), Stream::Stdout);
    }

    /// Begins to tell the agent what was typed: the answer, where it asks.
    fn tell(
        &mut self,
        client: &Client,
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
                self.finish();
                output::complain(&error.to_string());
                None
            }
            Ok(bytes) => {
                self.transcript.answered();
                let (client, id) = (client.clone(), agent.id.clone());
                Some(tokio::spawn(async move {
                    client.send_all(&id, &bytes, Some(PATIENCE)).await
                }))
            }
        }
    }
}

fn write(bytes: &[u8], stream: Stream) -> io::Result<()> {
    let write = |to: &mut dyn Write| to.write_all(bytes).and_then(|()| to.flush());
    match stream {
        Stream::Stdout => write(&mut io::stdout().lock()),
        Stream::Stderr => write(&mut io::stderr().lock()),
    }
}
