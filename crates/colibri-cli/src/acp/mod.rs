//! `colibri acp`: an agent of the Agent Client Protocol for editors. Each session of the editor is an agent in a sandbox.
//!
//! Standard output carries only the protocol. The end of the connection kills the agents.

mod content;
mod session;
mod updates;

use std::io;
use std::sync::Arc;

use agent_client_protocol::schema::ProtocolVersion;
use agent_client_protocol::v1::ConnectionTo;
use agent_client_protocol::v1::schema::{
    AgentCapabilities, CancelNotification, Implementation, InitializeRequest, InitializeResponse,
    NewSessionRequest, NewSessionResponse, PromptCapabilities, PromptRequest, PromptResponse,
};
use agent_client_protocol::{
    Agent, Client, Error, Lines, on_receive_notification, on_receive_request,
};
use futures_channel::mpsc as lines;
use futures_util::SinkExt;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::sync::Semaphore;

use self::content::prompt_text;
use self::session::Sessions;
use crate::args::{Acp, Global};
use crate::bridge::{OwnAgents, next_line};
use crate::error::CliError;
use crate::output;
use crate::signals::{SignalStream, TERMINATING};

/// Capacity of the queues of lines between standard input and output and the library.
const QUEUED_LINES: usize = 16;
/// Maximum number of updates that wait until the editor reads them; further output of agents stays in the journals.
const QUEUED_UPDATES: usize = 256;
/// Maximum number of sessions whose agents run at the same time.
const MAX_RUNNING: usize = 32;

/// Serves one connection until its end.
pub(crate) async fn acp(global: &Global, options: Acp) -> Result<u8, CliError> {
    let name = options.spawn.agent.clone().unwrap_or_default();
    let asks = crate::agents::can_ask(&name)?;
    let agents = Arc::new(OwnAgents::connect(global, MAX_RUNNING).await?);
    let mut signals = SignalStream::install(&TERMINATING)?;
    let room = Arc::new(Semaphore::new(QUEUED_UPDATES));
    let sessions = Arc::new(Sessions::new(
        agents.clone(),
        options.spawn,
        asks,
        room.clone(),
    ));
    let served = tokio::select! {
        served = serve(sessions, room) => served,
        _ = signals.next() => Ok(()),
    };
    agents.kill_all().await;
    served.map_err(|error| {
        CliError::Message(format!("cannot serve the editor: {}", error.message))
    })?;
    Ok(0)
}

/// Answers the requests of the editor until the end of standard input.
async fn serve(sessions: Arc<Sessions>, room: Arc<Semaphore>) -> Result<(), Error> {
    let (incoming, stream) = lines::channel(QUEUED_LINES);
    let (outgoing, receiver) = lines::channel(QUEUED_LINES);
    tokio::spawn(read_lines(incoming));
    let writing = tokio::spawn(write_lines(receiver, room));
    let [new, prompt, cancel] = std::array::from_fn(|_| sessions.clone());
    let served = Agent
        .v1()
        .name("colibri")
        .on_receive_request(
            async move |request: InitializeRequest, responder, _| {
                let version = request.protocol_version.min(ProtocolVersion::V1);
                let prompts = PromptCapabilities::new().embedded_context(true);
                responder.respond(
                    InitializeResponse::new(version)
                        .agent_capabilities(AgentCapabilities::new().prompt_capabilities(prompts))
                        .agent_info(Implementation::new("colibri", env!("CARGO_PKG_VERSION"))),
                )
            },
            on_receive_request!(),
        )
        .on_receive_request(
            async move |request: NewSessionRequest, responder, cx: ConnectionTo<Client>| {
                let sessions = new.clone();
                if !request.mcp_servers.is_empty() {
                    output::message(
                        "the agent does not get the MCP servers of the editor, which run outside of its sandbox",
                    );
                }
                cx.spawn(async move {
                    let id = sessions.open(request.cwd).await.map(NewSessionResponse::new);
                    responder.respond_with_result(id.map_err(|error| failed(&error)))
                })
            },
            on_receive_request!(),
        )
        .on_receive_request(
            async move |request: PromptRequest, responder, cx: ConnectionTo<Client>| {
                let text = match prompt_text(&request.prompt) {
                    Ok(text) => text,
                    Err(error) => return responder.respond_with_error(error),
                };
                // Before the next message is read, so that a later cancellation applies to this turn.
                let turn = match prompt.start_turn(&request.session_id, cx.clone()) {
                    Ok(turn) => turn,
                    Err(error) => return responder.respond_with_error(error),
                };
                cx.spawn(async move {
                    let reason = turn.run(&text).await.map(PromptResponse::new);
                    responder.respond_with_result(reason)
                })
            },
            on_receive_request!(),
        )
        .on_receive_notification(
            async move |request: CancelNotification, _| {
                cancel.cancel(&request.session_id);
                Ok(())
            },
            on_receive_notification!(),
        )
        .connect_to(Lines::new(outgoing.sink_map_err(io::Error::other), stream))
        .await;
    writing.abort();
    served
}

/// Passes the lines of standard input to the library.
async fn read_lines(mut to: lines::Sender<io::Result<String>>) {
    let mut input = BufReader::new(tokio::io::stdin());
    loop {
        let line = next_line(&mut input).await.transpose();
        let Some(line) = line else { return };
        let is_last = line.is_err();
        if to.send(line).await.is_err() || is_last {
            return;
        }
    }
}

/// Writes the lines of the library to standard output. Each line makes room for an update.
async fn write_lines(mut from: lines::Receiver<String>, room: Arc<Semaphore>) {
    let mut stdout = tokio::io::stdout();
    while let Ok(mut line) = from.recv().await {
        line.push('\n');
        let written = async {
            stdout.write_all(line.as_bytes()).await?;
            stdout.flush().await
        };
        if written.await.is_err() {
            break;
        }
        if room.available_permits() < QUEUED_UPDATES {
            room.add_permits(1);
        }
    }
    room.close();
}

/// Returns the error of a request for an error of Colibri.
fn failed(error: &CliError) -> Error {
    failure(error.message())
}

/// Returns the error of a request with this message.
fn failure(message: impl Into<String>) -> Error {
    Error::new(Error::internal_error().code, message)
}
