//! Drives an agent by the Agent Client Protocol, with the protocol's official library. Permission requests do not reach the
//! library: a client answers them.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use agent_client_protocol::schema::ProtocolVersion;
use agent_client_protocol::v1::ConnectionTo;
use agent_client_protocol::v1::schema::{
    CancelNotification, ClientCapabilities, ContentBlock, CreateTerminalRequest,
    CreateTerminalResponse, FileSystemCapabilities, InitializeRequest, KillTerminalRequest,
    KillTerminalResponse, LoadSessionRequest, NewSessionRequest, PromptRequest,
    ReadTextFileRequest, ReadTextFileResponse, ReleaseTerminalRequest, ReleaseTerminalResponse,
    SessionId, SessionNotification, TerminalExitStatus, TerminalOutputRequest,
    TerminalOutputResponse, TextContent, WaitForTerminalExitRequest, WaitForTerminalExitResponse,
    WriteTextFileRequest, WriteTextFileResponse,
};
use agent_client_protocol::{
    Agent, Client, Error, Lines, on_receive_notification, on_receive_request,
};
use futures_channel::mpsc as lines;
use futures_util::SinkExt;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::files;
use crate::session::{Step, Steps};
use crate::terminals::{TerminalCommand, Terminals};

enum Command {
    Prompt(String),
    Abort,
}

pub(crate) struct AcpDriver {
    steps: Steps,
    commands: mpsc::UnboundedSender<Command>,
    /// Lines of the agent for the library.
    incoming: lines::UnboundedSender<io::Result<String>>,
    /// Ids of permission requests without an answer.
    permissions: Vec<Value>,
    terminals: Terminals,
}

/// Maximum number of permission requests that wait for an answer.
const MAX_PERMISSIONS: usize = 100;

impl AcpDriver {
    /// Starts to open a session.
    pub(crate) fn open(session: Option<String>, steps: Steps) -> Self {
        let (commands, receiver) = mpsc::unbounded_channel();
        let (incoming, stream) = lines::unbounded();
        let terminals = Terminals::default();
        tokio::spawn(serve(
            session,
            steps.clone(),
            receiver,
            stream,
            terminals.clone(),
        ));
        Self {
            steps,
            commands,
            incoming,
            permissions: Vec::new(),
            terminals,
        }
    }

    pub(crate) fn prompt(&self, text: String) {
        let _ = self.commands.send(Command::Prompt(text));
    }

    /// Cancels the current turn, and answers the permission requests of the agent, as the protocol requires.
    pub(crate) fn abort(&mut self) {
        let _ = self.commands.send(Command::Abort);
        for id in std::mem::take(&mut self.permissions) {
            self.cancel(&id);
        }
    }

    fn cancel(&self, id: &Value) {
        let result = json!({"outcome": {"outcome": "cancelled"}});
        let answer = json!({"jsonrpc": "2.0", "id": id, "result": result});
        let _ = self.steps.send(Step::Send(answer.to_string()));
    }

    /// Processes a message of the agent.
    pub(crate) fn message(&mut self, line: String) {
        let message: Value = serde_json::from_str(&line).unwrap_or_default();
        if message["method"] == "session/request_permission" {
            self.permissions.push(message["id"].clone());
            if self.permissions.len() > MAX_PERMISSIONS {
                let oldest = self.permissions.remove(0);
                self.cancel(&oldest);
            }
        } else if message.is_object() {
            let _ = self.incoming.unbounded_send(Ok(line));
        }
    }

    /// Processes a line of a client for the agent.
    pub(crate) fn client_message(&mut self, line: &str) {
        let message: Value = serde_json::from_str(line).unwrap_or_default();
        if message["method"].is_null() {
            self.permissions.retain(|id| *id != message["id"]);
        }
    }
}

impl Drop for AcpDriver {
    fn drop(&mut self) {
        self.terminals.kill_all();
    }
}

/// Serves the connection until the driver is dropped.
async fn serve(
    session: Option<String>,
    steps: Steps,
    commands: mpsc::UnboundedReceiver<Command>,
    incoming: lines::UnboundedReceiver<io::Result<String>>,
    terminals: Terminals,
) {
    let sender = steps.clone();
    let (outgoing, mut messages) = lines::unbounded::<String>();
    tokio::spawn(async move {
        while let Ok(line) = messages.recv().await {
            let _ = sender.send(Step::Send(line));
        }
    });
    let outgoing = outgoing.sink_map_err(io::Error::other);
    let [create, output, wait, kill, release] = std::array::from_fn(|_| terminals.clone());
    let drive_steps = steps.clone();
    let result = Client
        .v1()
        .name("colibri")
        .on_receive_notification(
            async move |_: SessionNotification, _| Ok(()),
            on_receive_notification!(),
        )
        .on_receive_request(
            async move |request: ReadTextFileRequest, responder, cx| {
                cx.spawn(async move {
                    let read = files::read(&request.path, request.line, request.limit).await;
                    responder.respond_with_result(
                        read.map(ReadTextFileResponse::new)
                            .map_err(|error| failed("read", &request.path, &error)),
                    )
                })
            },
            on_receive_request!(),
        )
        .on_receive_request(
            async move |request: WriteTextFileRequest, responder, cx| {
                cx.spawn(async move {
                    let written = files::write(&request.path, &request.content).await;
                    responder.respond_with_result(
                        written
                            .map(|()| WriteTextFileResponse::new())
                            .map_err(|error| failed("write", &request.path, &error)),
                    )
                })
            },
            on_receive_request!(),
        )
        .on_receive_request(
            async move |request: CreateTerminalRequest, responder, _| {
                let created = create.create(terminal_command(request));
                responder
                    .respond_with_result(created.map(CreateTerminalResponse::new).map_err(refused))
            },
            on_receive_request!(),
        )
        .on_receive_request(
            async move |request: TerminalOutputRequest, responder, _| {
                let output = output.output(&request.terminal_id.0).map(|output| {
                    TerminalOutputResponse::new(output.text, output.is_truncated)
                        .exit_status(output.exit.map(exit_status))
                });
                responder.respond_with_result(output.map_err(refused))
            },
            on_receive_request!(),
        )
        .on_receive_request(
            async move |request: WaitForTerminalExitRequest, responder, cx| {
                let terminals = wait.clone();
                cx.spawn(async move {
                    let status = terminals.wait(&request.terminal_id.0).await;
                    let status = status
                        .map(exit_status)
                        .map(WaitForTerminalExitResponse::new);
                    responder.respond_with_result(status.map_err(refused))
                })
            },
            on_receive_request!(),
        )
        .on_receive_request(
            async move |request: KillTerminalRequest, responder, _| {
                let killed = kill.kill(&request.terminal_id.0);
                let killed = killed.map(|()| KillTerminalResponse::new());
                responder.respond_with_result(killed.map_err(refused))
            },
            on_receive_request!(),
        )
        .on_receive_request(
            async move |request: ReleaseTerminalRequest, responder, _| {
                let released = release.release(&request.terminal_id.0);
                let released = released.map(|()| ReleaseTerminalResponse::new());
                responder.respond_with_result(released.map_err(refused))
            },
            on_receive_request!(),
        )
        .connect_with(
            Lines::new(outgoing, incoming),
            async move |cx: ConnectionTo<Agent>| drive(cx, session, commands, drive_steps).await,
        )
        .await;
    if let Err(error) = result {
        let _ = steps.send(Step::Lost(error.message));
    }
}

/// Opens the session, and sends prompts and cancellations.
async fn drive(
    cx: ConnectionTo<Agent>,
    session: Option<String>,
    mut commands: mpsc::UnboundedReceiver<Command>,
    steps: Steps,
) -> Result<(), Error> {
    let session = match open_session(&cx, session).await {
        Ok(session) => session,
        Err(error) => {
            let _ = steps.send(Step::Lost(format!(
                "cannot open a session: {}; log in with the agent's own program, or give it a key",
                error_text(&error)
            )));
            return Ok(());
        }
    };
    let _ = steps.send(Step::Opened);
    while let Some(command) = commands.recv().await {
        match command {
            Command::Prompt(text) => {
                let content = vec![ContentBlock::Text(TextContent::new(text))];
                let request = cx.send_request(PromptRequest::new(session.clone(), content));
                let steps = steps.clone();
                cx.spawn(async move {
                    let answer = request.block_task().await;
                    let failure = answer.err().map(|error| error_text(&error));
                    let _ = steps.send(Step::Ended(failure));
                    Ok(())
                })?;
            }
            Command::Abort => cx.send_notification(CancelNotification::new(session.clone()))?,
        }
    }
    Ok(())
}

async fn open_session(
    cx: &ConnectionTo<Agent>,
    session: Option<String>,
) -> Result<SessionId, Error> {
    let files = FileSystemCapabilities::new()
        .read_text_file(true)
        .write_text_file(true);
    let capabilities = ClientCapabilities::new().fs(files).terminal(true);
    let initialize = InitializeRequest::new(ProtocolVersion::V1).client_capabilities(capabilities);
    cx.send_request(initialize).block_task().await?;
    let directory = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    match session {
        Some(session) => {
            let session = SessionId::new(session);
            let load = LoadSessionRequest::new(session.clone(), directory);
            cx.send_request(load).block_task().await?;
            Ok(session)
        }
        None => {
            let new = cx.send_request(NewSessionRequest::new(directory));
            Ok(new.block_task().await?.session_id)
        }
    }
}

fn terminal_command(request: CreateTerminalRequest) -> TerminalCommand {
    let env = request.env.into_iter();
    TerminalCommand {
        program: request.command,
        args: request.args,
        env: env
            .map(|variable| (variable.name, variable.value))
            .collect(),
        cwd: request.cwd,
        output_limit: request.output_byte_limit,
    }
}

fn exit_status(status: ExitStatus) -> TerminalExitStatus {
    use std::os::unix::process::ExitStatusExt;
    TerminalExitStatus::new()
        .exit_code(status.code().and_then(|code| u32::try_from(code).ok()))
        .signal(status.signal().map(|signal| signal.to_string()))
}

fn failed(action: &str, path: &std::path::Path, error: &io::Error) -> Error {
    refused(io::Error::other(format!(
        "cannot {action} {}: {error}",
        path.display()
    )))
}

fn refused(error: io::Error) -> Error {
    Error::internal_error().data(error.to_string())
}

/// Returns the message of an error, and its details if they are text.
fn error_text(error: &Error) -> String {
    match &error.data {
        Some(Value::String(details)) => format!("{}: {details}", error.message),
        _ => error.message.clone(),
    }
}
