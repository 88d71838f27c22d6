//! `colibri run`: an agent in the foreground, as if it were started by the shell itself.

use std::io::{self, Write};

use colibri_client::{Client, Exit, ExitEvent, KillParams, Notification, Stream, SubscribeParams};
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::{Global, Spawn};
use crate::connect::connect_or_start;
use crate::error::CliError;
use crate::output;

/// Exit code of a program that wrote to a closed pipe, as a shell reports SIGPIPE.
pub(crate) const BROKEN_PIPE: u8 = 141;

/// Runs an agent and exits as it does.
pub(crate) async fn run(global: &Global, spawn: Spawn) -> Result<u8, CliError> {
    let client = connect_or_start(global).await?;
    let params = crate::config::params(&client, spawn).await?;
    let watch = |kind| signal(kind).map_err(CliError::io("watching signals"));
    let mut interrupt = watch(SignalKind::interrupt())?;
    let mut terminate = watch(SignalKind::terminate())?;
    let mut hangup = watch(SignalKind::hangup())?;
    let mut quit = watch(SignalKind::quit())?;
    let agent = client.spawn_agent(params).await?;
    agent
        .warnings
        .iter()
        .for_each(|warning| output::note(warning));
    let id = agent.id;
    let from_start = SubscribeParams {
        id: Some(id.clone()),
        stream: None,
        from_offset: Some(0),
        ..SubscribeParams::default()
    };
    let mut events = client.subscribe(from_start).await?;
    let input = tokio::spawn(forward_input(client.clone(), id.clone()));
    let outcome = loop {
        tokio::select! {
            event = events.next() => match event {
                None => break Err(CliError::Lost(id.clone())),
                Some(Notification::AgentExit(exit)) => break Ok(exit_code(&exit)),
                Some(Notification::AgentOutput(chunk)) => {
                    let stream = chunk.stream;
                    let Ok(bytes) = chunk.data.into_bytes() else { continue };
                    if write(stream, &bytes).is_err() {
                        // Nobody reads us any more, so nobody wants the agent's output.
                        let kill = KillParams { id: id.clone(), ..KillParams::default() };
                        client.kill_agent(kill).await?;
                        break Ok(BROKEN_PIPE);
                    }
                }
                Some(_) => {}
            },
            name = any(&mut interrupt, &mut terminate, &mut hangup, &mut quit) => {
                let forward = KillParams {
                    id: id.clone(),
                    signal: Some(name.to_owned()),
                    escalate: false,
                    no_restart: true,
                    ..KillParams::default()
                };
                if let Err(error) = client.kill_agent(forward).await {
                    output::complain(&error.to_string());
                }
            }
        }
    };
    input.abort();
    outcome
}

async fn any(
    interrupt: &mut Signal,
    terminate: &mut Signal,
    hangup: &mut Signal,
    quit: &mut Signal,
) -> &'static str {
    tokio::select! {
        _ = interrupt.recv() => "INT",
        _ = terminate.recv() => "TERM",
        _ = hangup.recv() => "HUP",
        _ = quit.recv() => "QUIT",
    }
}

fn write(stream: Stream, bytes: &[u8]) -> io::Result<()> {
    let write = |mut to: Box<dyn Write>| to.write_all(bytes).and_then(|()| to.flush());
    match stream {
        Stream::Stdout => write(Box::new(io::stdout().lock())),
        Stream::Stderr => write(Box::new(io::stderr().lock())),
    }
}

/// The code to exit with; says on stderr what a code cannot.
pub(crate) fn exit_code(exit: &ExitEvent) -> u8 {
    if let Some(note) = exit.exit_note.as_ref().or(exit.error.as_ref()) {
        output::note(note);
    }
    exit.exit.map_or(1, code)
}

/// As a shell reports it.
pub(crate) fn code(exit: Exit) -> u8 {
    u8::try_from(exit.shell_code() & 0xff).unwrap_or(1)
}

/// Our input becomes the agent's, to its end.
async fn forward_input(client: Client, id: String) {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stdin.read(&mut buffer).await {
            Ok(0) | Err(_) => {
                let _ = client.close_input(&id).await;
                return;
            }
            Ok(count) => {
                // An agent that has closed its input wants no more of it.
                let bytes = buffer.get(..count).unwrap_or_default();
                if client.send_all(&id, bytes, None).await.is_err() {
                    return;
                }
            }
        }
    }
}
