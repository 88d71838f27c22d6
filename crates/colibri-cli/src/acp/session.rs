//! The sessions of an editor, and their turns.
//!
//! ```text
//! prompt --> the agent works --> its turn ends ----------------> end_turn, or an error
//!              |      ^    |
//!     question |      |    | session/cancel
//!              v      |    v
//!    permission request   abort --> its turn ends, or it is killed --> cancelled
//! ```

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent_client_protocol::Error;
use agent_client_protocol::v1::ConnectionTo;
use agent_client_protocol::v1::schema::{
    RequestPermissionOutcome, RequestPermissionResponse, SessionId, SessionNotification,
    SessionUpdate, StopReason,
};
use colibri_client::glasspane::{
    AgentCommand, AnswerOption, Grant, PromptDelivery, Question, TranscriptItem,
};
use colibri_client::{
    Agent, Client, ClientError, FollowEvent, OutputChunk, StreamChoice, SubscribeParams,
    unique_command_id,
};
use colibri_types::AgentName;
use tokio::sync::{OwnedMutexGuard, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::updates::{Updates, message};
use super::{failed, failure};
use crate::answer::TurnReader;
use crate::args::{Spawn, is_project};
use crate::bridge::{ACCEPT_TIMEOUT, OwnAgents, kill};
use crate::error::CliError;
use crate::output;
use crate::tables::short_exit;

type Editor = ConnectionTo<agent_client_protocol::Client>;

/// Maximum time from the abort of a turn to its end; after it the agent is killed.
const ABORT_TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum number of questions of a turn that wait for the editor.
const MAX_QUESTIONS: usize = 64;
/// Maximum number of sessions of one connection.
const MAX_SESSIONS: usize = 1000;

/// The sessions of one connection.
pub(super) struct Sessions {
    agents: Arc<OwnAgents>,
    options: Spawn,
    /// The agent can ask before it uses its tools.
    asks: bool,
    /// Room for updates that the editor has not read.
    room: Arc<Semaphore>,
    sessions: Mutex<HashMap<SessionId, Arc<Session>>>,
}

struct Session {
    workspace: PathBuf,
    /// Locked during a turn.
    agent: Arc<tokio::sync::Mutex<SessionAgent>>,
    is_cancelled: watch::Sender<bool>,
}

/// The agent of a session.
struct SessionAgent {
    id: String,
    /// The question that the next prompt answers.
    question: Option<Question>,
}

impl Sessions {
    pub(super) fn new(
        agents: Arc<OwnAgents>,
        options: Spawn,
        asks: bool,
        room: Arc<Semaphore>,
    ) -> Self {
        Self {
            agents,
            options,
            asks,
            room,
            sessions: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts an agent in a directory, and returns the id of its session.
    pub(super) async fn open(&self, directory: PathBuf) -> Result<SessionId, CliError> {
        if self.lock().len() >= MAX_SESSIONS {
            return Err(CliError::Message(format!(
                "cannot open a session: the connection has {MAX_SESSIONS}, the maximum; start colibri acp again"
            )));
        }
        let workspace = tokio::fs::canonicalize(&directory).await.map_err(|error| {
            CliError::Message(format!(
                "cannot use {directory:?} as the workspace: {error}; open an existing directory"
            ))
        })?;
        if !is_project(&workspace) {
            return Err(CliError::Message(format!(
                "refused to let the agent write {directory:?}: it contains the home directory or is one of the system; open the directory of a project"
            )));
        }
        let session = SessionId::new(format!("acp-{}", unique_command_id()));
        let id = self.spawn(&session, &workspace).await?;
        let agent = SessionAgent { id, question: None };
        let opened = Session {
            workspace,
            agent: Arc::new(tokio::sync::Mutex::new(agent)),
            is_cancelled: watch::Sender::new(false),
        };
        self.lock().insert(session.clone(), Arc::new(opened));
        Ok(session)
    }

    /// Starts the agent of a session.
    async fn spawn(
        &self,
        session: &SessionId,
        workspace: &std::path::Path,
    ) -> Result<String, CliError> {
        let name = session.0.parse::<AgentName>().ok();
        let options = self.options.clone().with_name(name);
        let mut options = options.with_workspace(workspace.to_owned());
        options.ask |= self.asks;
        self.agents.spawn(options).await
    }

    /// Starts a turn of a session.
    pub(super) fn start_turn(
        self: &Arc<Self>,
        id: &SessionId,
        editor: Editor,
    ) -> Result<Turn, Error> {
        let session = self.lock().get(id).cloned();
        let session =
            session.ok_or_else(|| Error::invalid_params().data("no session with this id"))?;
        let agent = session.agent.clone().try_lock_owned().map_err(|_| {
            Error::invalid_request().data("the session has a turn in progress; cancel it first")
        })?;
        session.is_cancelled.send_replace(false);
        Ok(Turn {
            id: id.clone(),
            cancelled: session.is_cancelled.subscribe(),
            session,
            sessions: self.clone(),
            agent,
            editor,
            updates: Updates::default(),
        })
    }

    /// Cancels the turn of a session.
    pub(super) fn cancel(&self, id: &SessionId) {
        if let Some(session) = self.lock().get(id) {
            session.is_cancelled.send_replace(true);
        }
    }
}

/// A turn of a session.
pub(super) struct Turn {
    id: SessionId,
    session: Arc<Session>,
    sessions: Arc<Sessions>,
    agent: OwnedMutexGuard<SessionAgent>,
    cancelled: watch::Receiver<bool>,
    editor: Editor,
    updates: Updates,
}

/// An answer of the editor to a question.
type Permission = (Question, Result<RequestPermissionResponse, Error>);

impl Turn {
    /// Sends the prompt, and reports the turn to the editor until its end.
    pub(super) async fn run(mut self, text: &str) -> Result<StopReason, Error> {
        let reason = self.follow(text).await;
        for update in self.updates.end() {
            self.send(update).await?;
        }
        match *self.cancelled.borrow() {
            true => Ok(StopReason::Cancelled),
            false => reason,
        }
    }

    async fn follow(&mut self, text: &str) -> Result<StopReason, Error> {
        let (client, agent) = self.running_agent().await?;
        let question = self.agent.question.take();
        let command = match &question {
            Some(question) => AgentCommand::Answer(question, text),
            None => AgentCommand::Prompt(text, PromptDelivery::Now),
        };
        // Subscribe before the prompt is sent, so that no part of the answer is missed.
        let params = SubscribeParams {
            stream: Some(StreamChoice::Stdout),
            from_offset: Some(agent.stdout_bytes),
            ..SubscribeParams::default()
        };
        let endpoint = self.sessions.agents.endpoint();
        let mut events = endpoint.follow(client.clone(), &agent.id, params);
        let mut reader = TurnReader::new(agent.runtime);
        let sending = client.command(&agent, &command, ACCEPT_TIMEOUT);
        tokio::pin!(sending);
        let mut is_accepted = false;
        let mut permissions: JoinSet<Permission> = JoinSet::new();
        let mut aborts: JoinSet<Result<(), ClientError>> = JoinSet::new();
        let mut cancelled = self.cancelled.clone();
        let mut deadline: Option<Instant> = None;
        loop {
            tokio::select! {
                result = &mut sending, if !is_accepted => {
                    result.map_err(|error| failed(&error.into()))?;
                    is_accepted = true;
                }
                // An abort before the prompt would have no effect.
                () = async { drop(cancelled.wait_for(|cancelled| *cancelled).await) }, if is_accepted && deadline.is_none() => {
                    deadline = Some(Instant::now() + ABORT_TIMEOUT);
                    let (client, agent) = (events.client().get(), agent.clone());
                    aborts.spawn(async move {
                        client.command(&agent, &AgentCommand::Abort, ABORT_TIMEOUT).await.map(drop)
                    });
                }
                Some(result) = aborts.join_next() => if let Ok(Err(error)) = result {
                    output::message(&format!("killing agent {}: {error}", agent.id));
                    return self.kill(&events.client().get()).await;
                },
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    output::message(&format!("killing agent {}: it did not end its turn", agent.id));
                    return self.kill(&events.client().get()).await;
                }
                Some(permission) = permissions.join_next() => if let Ok((question, response)) = permission {
                    let client = events.client().get();
                    self.answer(&client, &agent, &question, response).await?;
                },
                event = events.next() => match event {
                    Some(Ok(FollowEvent::Output(output))) => {
                        let step = self.output(&mut reader, output, &mut permissions).await?;
                        if let Some(reason) = step {
                            return reason;
                        }
                    }
                    Some(Ok(FollowEvent::State(event))) if reader.state(event.state) => {
                        return Ok(StopReason::EndTurn);
                    }
                    Some(Ok(FollowEvent::Exit(exit))) => {
                        return Err(failure(format!(
                            "the agent has ended: {}; see its output with colibri logs {}",
                            short_exit(exit.exit), agent.id
                        )));
                    }
                    Some(Ok(FollowEvent::Connection(event))) => output::message(&event.to_string()),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(failed(&error.into())),
                    None => return Err(failed(&ClientError::Closed.into())),
                },
            }
        }
    }

    /// Returns the agent of the session, which is started again if it has ended.
    async fn running_agent(&mut self) -> Result<(Client, Agent), Error> {
        let agents = self.sessions.agents.clone();
        let client = agents.client().await.map_err(|error| failed(&error))?;
        let agent = match agents.get(&self.agent.id).await {
            Ok(agent) if agent.exited_at.is_none() => Some(agent),
            Ok(_) => None,
            Err(error) if error.is_unknown_agent() => None,
            Err(error) => return Err(failed(&error)),
        };
        let agent = match agent {
            Some(agent) => agent,
            None => {
                let spawned = self.sessions.spawn(&self.id, &self.session.workspace).await;
                self.agent.id = spawned.map_err(|error| failed(&error))?;
                self.agent.question = None;
                let notice = "The agent had ended, and was started again without the earlier prompts of this session.\n\n";
                self.send(message(notice.to_owned())).await?;
                let agent = agents.get(&self.agent.id).await;
                agent.map_err(|error| failed(&error))?
            }
        };
        Ok((client, agent))
    }

    /// Reports output to the editor. Returns the result of the turn at its end.
    async fn output(
        &mut self,
        reader: &mut TurnReader,
        output: OutputChunk,
        permissions: &mut JoinSet<Permission>,
    ) -> Result<Option<Result<StopReason, Error>>, Error> {
        if output.gap > 0 {
            reader.skip_gap(output.gap);
        }
        let mut items = Vec::new();
        let has_ended = reader.output(&output.bytes, |item| items.push(item));
        for item in items {
            if let TranscriptItem::Question(question) = item {
                if let Some(reason) = self.ask(question, permissions).await? {
                    return Ok(Some(Ok(reason)));
                }
            } else if let Some(update) = self.updates.item(item) {
                self.send(update).await?;
            }
        }
        if !has_ended {
            return Ok(None);
        }
        Ok(Some(match self.updates.failure() {
            Some(error) => Err(failure(error)),
            None => Ok(StopReason::EndTurn),
        }))
    }

    /// Asks the user a question of the agent. The protocol has no request for text: such a question ends the turn, and the next
    /// prompt answers it.
    async fn ask(
        &mut self,
        question: Question,
        permissions: &mut JoinSet<Permission>,
    ) -> Result<Option<StopReason>, Error> {
        let Some(request) = self.updates.permission(&self.id, &question) else {
            self.send(message(question.text.clone())).await?;
            self.agent.question = Some(question);
            return Ok(Some(StopReason::EndTurn));
        };
        if permissions.len() >= MAX_QUESTIONS {
            self.cancel(&format!(
                "it asks more than {MAX_QUESTIONS} questions at once"
            ));
            return Ok(None);
        }
        let asked = self.editor.send_request(request);
        permissions.spawn(async move { (question, asked.block_task().await) });
        Ok(None)
    }

    /// Cancels this turn; the agent keeps running.
    fn cancel(&self, reason: &str) {
        if !self.session.is_cancelled.send_replace(true) {
            let id = &self.agent.id;
            output::message(&format!("cancelling the turn of agent {id}: {reason}"));
        }
    }

    /// Sends the user's answer to the agent. An editor that has no answer refuses, or cancels the turn if no option refuses.
    async fn answer(
        &self,
        client: &Client,
        agent: &Agent,
        question: &Question,
        response: Result<RequestPermissionResponse, Error>,
    ) -> Result<(), Error> {
        let selected = match response.map(|response| response.outcome) {
            Ok(RequestPermissionOutcome::Selected(selected)) => {
                Some(selected.option_id.0.to_string())
            }
            // The abort answers the question.
            _ if *self.cancelled.borrow() => return Ok(()),
            _ => None,
        };
        let Some(answer) = selected.or_else(|| refusal(question)) else {
            self.cancel("the editor has no answer, and no option refuses");
            return Ok(());
        };
        let command = AgentCommand::Answer(question, &answer);
        let answered = client.command(agent, &command, ACCEPT_TIMEOUT).await;
        answered.map(drop).map_err(|error| failed(&error.into()))
    }

    /// Kills the agent at the end of a cancelled turn. The next prompt starts it again.
    async fn kill(&self, client: &Client) -> Result<StopReason, Error> {
        let killed = kill(client, &self.agent.id).await;
        killed.map_err(|error| failed(&error))?;
        Ok(StopReason::Cancelled)
    }

    /// Sends an update when the editor has read enough of the earlier ones.
    async fn send(&self, update: SessionUpdate) -> Result<(), Error> {
        let room = self.sessions.room.acquire().await;
        room.map_err(|_| failure("the connection has ended"))?
            .forget();
        let notification = SessionNotification::new(self.id.clone(), update);
        self.editor.send_notification(notification)
    }
}

/// Returns the answer that refuses; `None` if no option does.
fn refusal(question: &Question) -> Option<String> {
    let mut options = question.options().into_iter();
    let refuses = |option: &AnswerOption| match option.grant {
        Some(grant) => grant == Grant::Refused,
        None => option.answer == "n",
    };
    options.find(refuses).map(|option| option.answer)
}

#[cfg(test)]
mod tests {
    use colibri_client::AgentRuntime;
    use colibri_client::glasspane::Transcript;
    use serde_json::json;

    use super::*;

    #[test]
    fn refusal_never_selects_an_option_that_permits() {
        let options = |options: &[(&str, &str)]| {
            let options: Vec<_> = options
                .iter()
                .map(|(name, kind)| json!({"optionId": name, "name": name, "kind": kind}))
                .collect();
            json!({"jsonrpc": "2.0", "id": 1, "method": "session/request_permission", "params": {
                "toolCall": {"toolCallId": "c", "title": "ls"}, "options": options,
            }})
        };
        let confirm = json!({"type": "extension_ui_request", "id": "q", "method": "confirm"});
        let select = json!({"type": "extension_ui_request", "id": "q", "method": "select", "options": ["", "n"]});
        use AgentRuntime::{Acp, Pi};
        for (runtime, event, expected) in [
            (
                Acp,
                options(&[("a", "allow_once"), ("b", "reject_once")]),
                Some("2"),
            ),
            (
                Acp,
                options(&[("", "allow_always"), ("n", "allow_always")]),
                None,
            ),
            (Acp, options(&[("n", "allow_once")]), None),
            (Acp, options(&[("n", "unknown")]), None),
            (Pi, confirm, Some("n")),
            (Pi, select, None),
        ] {
            let mut transcript = Transcript::new(runtime);
            transcript.push_stdout(format!("{event}\n").as_bytes());
            let question = transcript.open_question().expect("it asks");
            assert_eq!(refusal(question).as_deref(), expected, "{event}");
        }
    }
}
