//! The tools of the server.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use colibri_client::glasspane::{
    AgentCommand, PromptDelivery, Question, Transcript, TranscriptFormatter,
};
use colibri_client::{Acceptance, Agent, AgentState, Client, OutputReader, Stream, StreamRange};
use colibri_types::AgentName;
use rmcp::handler::server::router::tool::ToolRouter;
use rmcp::handler::server::wrapper::Parameters;
use rmcp::model::{CallToolResult, ContentBlock, Implementation, ServerCapabilities, ServerConfig};
use rmcp::{ServerHandler, tool, tool_handler, tool_router};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::workspaces::{Workplace, Workspaces};
use crate::answer::{Turn, TurnEvent};
use crate::args::Spawn;
use crate::bridge::{ACCEPT_TIMEOUT, OwnAgents, kill};
use crate::error::CliError;
use crate::tables::short_exit;

/// Default time to wait for the end of a turn, in seconds.
const DEFAULT_WAIT: u32 = 30;
/// Maximum time to wait for the end of a turn, in seconds.
const MAX_WAIT: u32 = 600;
/// Number of bytes of each output stream that are parsed for the end of a transcript.
const HISTORY: u64 = 1 << 20;
/// Default length of a transcript, in characters.
const DEFAULT_CHARS: usize = 4000;
/// Maximum number of answered questions of an agent that are remembered.
const MAX_ANSWERED: usize = 64;
/// Maximum length of a transcript or an answer, in characters.
const MAX_CHARS: usize = 100_000;

/// What the client is, and how it uses the tools.
const INSTRUCTIONS: &str = "Starts and leads coding agents, each in a sandbox. Start one with spawn_agent, give it work with \
prompt_agent, and end it with kill_agent when it is no longer needed. If prompt_agent returns before the turn has ended, read_agent \
shows the progress. An agent in state blocked waits for answer_agent.";

/// Parameters of `spawn_agent`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SpawnParams {
    /// Kind of agent: a preset, like claude, codex, gemini or pi.
    agent: String,
    /// First prompt. The call does not wait for its end.
    prompt: Option<String>,
    /// Directory that the agent works in and may write, in the workspace of the server. Default: the workspace of the server.
    workspace: Option<String>,
    /// Name of the agent for the user, unique among running agents.
    name: Option<String>,
    /// Let the agent ask before it uses its tools; answer with answer_agent. Default: false.
    #[serde(default)]
    ask: bool,
}

/// When a working agent gets a prompt.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
enum Delivery {
    #[default]
    Now,
    Steer,
    FollowUp,
}

/// Parameters of `prompt_agent`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct PromptParams {
    /// Id of the agent.
    id: String,
    /// The prompt.
    text: String,
    /// When a working agent gets the prompt: now (some refuse it), steer (before the next request to its model), or follow_up (after its
    /// current turn). Default: now.
    #[serde(default)]
    delivery: Delivery,
    /// Maximum time to wait for the end of the turn, in seconds; at most 600. Default: 30. 0 does not wait.
    wait_seconds: Option<u32>,
}

/// Parameters of `read_agent`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ReadParams {
    /// Id of the agent.
    id: String,
    /// Maximum length of the transcript, in characters; at most 100000. Default: 4000.
    max_chars: Option<usize>,
}

/// Parameters of `answer_agent`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AnswerParams {
    /// Id of the agent.
    id: String,
    /// Number of the question. An answer to a question that is not open any more is refused.
    question: u64,
    /// The answer: one of the question's options, or text if it has none.
    answer: String,
    /// Maximum time to wait for the end of the turn, in seconds; at most 600. Default: 30. 0 does not wait.
    wait_seconds: Option<u32>,
}

/// Parameters of `kill_agent`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct KillAgentParams {
    /// Id of the agent.
    id: String,
}

/// The tools, and what they may do.
#[derive(Clone)]
pub(super) struct AgentTools {
    agents: Arc<OwnAgents>,
    profile: Option<String>,
    workspaces: Arc<Workspaces>,
    shown: Arc<Mutex<ShownQuestions>>,
    tool_router: ToolRouter<Self>,
}

/// The questions that the client has seen, numbered: an agent could replace a question while the client answers it.
#[derive(Default)]
struct ShownQuestions {
    count: u64,
    /// The last question of each agent of this server.
    last: BTreeMap<String, (u64, Question)>,
    /// The last answered questions of each agent, newest first. The output of some agents does not show that a question was answered.
    answered: BTreeMap<String, VecDeque<Question>>,
}

impl ShownQuestions {
    /// Returns the number of a question.
    fn number(&mut self, agent: &str, question: &Question) -> u64 {
        match self.last.get(agent) {
            Some((number, last)) if last == question => *number,
            _ => {
                self.count += 1;
                let shown = (self.count, question.clone());
                self.last.insert(agent.to_owned(), shown);
                self.count
            }
        }
    }

    /// Reports whether the client has seen this question under this number.
    fn is_shown(&self, agent: &str, number: u64, question: &Question) -> bool {
        let last = self.last.get(agent);
        last.is_some_and(|(shown, last)| *shown == number && last == question)
    }

    /// Forgets the questions of an agent.
    fn forget(&mut self, agent: &str) {
        self.last.remove(agent);
        self.answered.remove(agent);
    }

    /// Records an answer.
    fn answer(&mut self, agent: &str, question: &Question) {
        let answered = self.answered.entry(agent.to_owned()).or_default();
        answered.truncate(MAX_ANSWERED - 1);
        answered.push_front(question.clone());
    }

    /// Leaves out the questions that were answered, unless all were: an agent that was restarted may ask the same again.
    fn open(&self, agent: &str, questions: Vec<Question>) -> Vec<Question> {
        let answered = self.answered.get(agent);
        let is_open = |question: &&Question| !answered.is_some_and(|list| list.contains(question));
        let open: Vec<Question> = questions.iter().filter(is_open).cloned().collect();
        if open.is_empty() { questions } else { open }
    }
}

#[tool_handler(router = self.tool_router)]
impl ServerHandler for AgentTools {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new("colibri", env!("CARGO_PKG_VERSION")))
            .with_instructions(INSTRUCTIONS)
    }
}

#[tool_router]
impl AgentTools {
    pub(super) fn new(
        agents: Arc<OwnAgents>,
        profile: Option<String>,
        workspaces: Workspaces,
    ) -> Self {
        Self {
            agents,
            profile,
            workspaces: Arc::new(workspaces),
            shown: Arc::default(),
            tool_router: Self::tool_router(),
        }
    }

    #[tool(description = "Start an agent in a sandbox, and return its id")]
    async fn spawn_agent(&self, Parameters(params): Parameters<SpawnParams>) -> CallToolResult {
        result(self.spawn(params).await)
    }

    #[tool(description = "List the agents of this server with their states")]
    async fn list_agents(&self) -> CallToolResult {
        result(self.list().await)
    }

    #[tool(
        description = "Send an agent a prompt, wait for the end of its turn, and return its answer. The result has state working if the turn takes longer, and state blocked with the question if the agent asks one"
    )]
    async fn prompt_agent(&self, Parameters(params): Parameters<PromptParams>) -> CallToolResult {
        result(self.prompt(params).await)
    }

    #[tool(
        description = "Return the state of an agent, its open question, its last answer, and the end of its transcript"
    )]
    async fn read_agent(&self, Parameters(params): Parameters<ReadParams>) -> CallToolResult {
        result(self.read(params).await)
    }

    #[tool(
        description = "Answer the open question of an agent, by the number that prompt_agent or read_agent returned. If another question is open, return it at once; otherwise wait for the end of the turn and return its answer, as prompt_agent does"
    )]
    async fn answer_agent(&self, Parameters(params): Parameters<AnswerParams>) -> CallToolResult {
        result(self.answer(params).await)
    }

    #[tool(
        description = "End an agent and all of its processes; files that it has written are kept"
    )]
    async fn kill_agent(&self, Parameters(params): Parameters<KillAgentParams>) -> CallToolResult {
        result(self.kill(&params.id).await)
    }
}

impl AgentTools {
    async fn spawn(&self, params: SpawnParams) -> Result<Value, CliError> {
        let SpawnParams {
            agent,
            prompt,
            workspace,
            name,
            ask,
        } = params;
        if !crate::agents::can_ask(&agent)? && ask {
            return Err(CliError::Message(format!(
                "agent {agent} cannot ask before it uses its tools; start it without ask"
            )));
        }
        let name = name.map(|name| name.parse::<AgentName>()).transpose();
        let name = name.map_err(|error| CliError::Message(format!("invalid name: {error}")))?;
        let mut options = Spawn::default();
        options.profile.clone_from(&self.profile);
        options.agent = Some(agent);
        options.ask = ask;
        let options = match self.workspaces.resolve(workspace.as_deref())? {
            Workplace::Workspace(directory) => options.with_workspace(directory),
            Workplace::Mounted(path) => options.with_cwd(path.to_string_lossy().into_owned()),
        };
        let id = self.agents.spawn(options.with_name(name)).await?;
        if let Some(prompt) = prompt {
            let (client, agent) = self.agent(&id).await?;
            let command = AgentCommand::Prompt(&prompt, PromptDelivery::Now);
            let sent = client.command(&agent, &command, ACCEPT_TIMEOUT).await;
            sent.map_err(|error| {
                CliError::Message(format!(
                    "agent {id} runs, but did not accept the prompt: {error}; send it with prompt_agent"
                ))
            })?;
        }
        Ok(json!({"id": id}))
    }

    /// Returns an agent of this server, and a connection.
    async fn agent(&self, id: &str) -> Result<(Client, Agent), CliError> {
        let agent = self.agents.get(id).await?;
        Ok((self.agents.client().await?, agent))
    }

    async fn list(&self) -> Result<Value, CliError> {
        let mut agents = Vec::new();
        for id in self.agents.ids() {
            match self.agents.get(&id).await {
                Ok(agent) => agents.push(summary(&agent)),
                // A user has removed it.
                Err(error) if error.is_unknown_agent() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(json!({ "agents": agents }))
    }

    async fn prompt(&self, params: PromptParams) -> Result<Value, CliError> {
        let (client, agent) = self.agent(&params.id).await?;
        let delivery = match params.delivery {
            Delivery::Now => PromptDelivery::Now,
            Delivery::Steer => PromptDelivery::Steer,
            Delivery::FollowUp => PromptDelivery::FollowUp,
        };
        if agent.state == AgentState::Blocked {
            return Err(CliError::Message(format!(
                "agent {} waits for an answer; read the question with read_agent, and answer it with answer_agent",
                agent.id
            )));
        }
        let command = AgentCommand::Prompt(&params.text, delivery);
        self.command(&client, &agent, &command, params.wait_seconds)
            .await
    }

    async fn answer(&self, params: AnswerParams) -> Result<Value, CliError> {
        let (client, agent) = self.agent(&params.id).await?;
        let (_, questions) = self.transcript(&client, &agent).await?;
        let question = questions.first().ok_or_else(|| {
            CliError::Message(format!(
                "agent {} has no open question; read its state with read_agent",
                agent.id
            ))
        })?;
        let is_shown = self.shown().is_shown(&agent.id, params.question, question);
        if !is_shown {
            return Err(CliError::Message(format!(
                "agent {} waits for the answer to another question; read it with read_agent, and give its number",
                agent.id
            )));
        }
        let command = AgentCommand::Answer(question, &params.answer);
        let next = questions.get(1);
        let wait_seconds = match next {
            Some(_) => Some(0),
            None => params.wait_seconds,
        };
        let result = self
            .command(&client, &agent, &command, wait_seconds)
            .await?;
        self.shown().answer(&agent.id, question);
        Ok(match next {
            Some(next) => self.blocked(&agent.id, next),
            None => result,
        })
    }

    fn shown(&self) -> MutexGuard<'_, ShownQuestions> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn blocked(&self, id: &str, question: &Question) -> Value {
        json!({"id": id, "state": "blocked", "question": self.question(id, question)})
    }

    /// Returns an agent's transcript, and its open questions.
    async fn transcript(
        &self,
        client: &Client,
        agent: &Agent,
    ) -> Result<(String, Vec<Question>), CliError> {
        let (text, questions) = transcript(client, agent).await?;
        if questions.is_empty() {
            self.shown().forget(&agent.id);
        }
        Ok((text, self.shown().open(&agent.id, questions)))
    }

    /// Returns a question for the client.
    fn question(&self, agent: &str, question: &Question) -> Value {
        let options = question.options().into_iter();
        let options: Vec<Value> = options
            .map(|option| json!({"answer": option.answer, "label": option.label}))
            .collect();
        let number = self.shown().number(agent, question);
        json!({"number": number, "text": question.text, "options": options})
    }

    async fn read(&self, params: ReadParams) -> Result<Value, CliError> {
        let (client, agent) = self.agent(&params.id).await?;
        let (text, questions) = self.transcript(&client, &agent).await?;
        let max_chars = params.max_chars.unwrap_or(DEFAULT_CHARS).min(MAX_CHARS);
        let mut value = summary(&agent);
        value["transcript"] = end(&text, max_chars).into();
        if let Some(question) = questions.first() {
            value["question"] = self.question(&agent.id, question);
        }
        if let Some(answer) = agent.view.as_ref().and_then(|view| view.answer.as_ref()) {
            value["answer"] = answer.as_str().into();
        }
        Ok(value)
    }

    async fn kill(&self, id: &str) -> Result<Value, CliError> {
        let (client, agent) = self.agent(id).await?;
        kill(&client, &agent.id).await?;
        self.shown().forget(&agent.id);
        Ok(json!({"id": agent.id, "killed": true}))
    }

    /// Sends a command, and waits for the end of the turn.
    async fn command(
        &self,
        client: &Client,
        agent: &Agent,
        command: &AgentCommand<'_>,
        wait_seconds: Option<u32>,
    ) -> Result<Value, CliError> {
        let wait = wait_seconds.unwrap_or(DEFAULT_WAIT).min(MAX_WAIT);
        // Subscribe before the command is sent, so that no part of the answer is missed.
        let turn = match wait {
            0 => None,
            _ => Some(Turn::follow(client, &agent.id, agent.runtime).await?),
        };
        let accepted = client.command(agent, command, ACCEPT_TIMEOUT).await?;
        let Some(mut turn) = turn else {
            let accepted = accepted == Acceptance::Accepted;
            return Ok(json!({"id": agent.id, "state": "working", "accepted": accepted}));
        };
        let waited = tokio::time::timeout(Duration::from_secs(wait.into()), turn.next()).await;
        match waited {
            Ok(event) => Ok(self.turn_result(&agent.id, event?)),
            Err(_) => Ok(json!({
                "id": agent.id,
                "state": "working",
                "note": format!("the turn has not ended within {wait} seconds; read its progress with read_agent"),
            })),
        }
    }

    /// Returns what the client learns about a turn.
    fn turn_result(&self, id: &str, event: TurnEvent) -> Value {
        match event {
            TurnEvent::Asked(question) => self.blocked(id, &question),
            TurnEvent::Ended(turn) => {
                let answer = end(&turn.text, MAX_CHARS);
                let mut value = json!({"id": id, "state": "idle", "answer": answer});
                if let Some(error) = turn.error {
                    value["error"] = error.into();
                }
                value
            }
        }
    }
}

/// Returns the result of a tool.
fn result(value: Result<Value, CliError>) -> CallToolResult {
    match value {
        Ok(value) => CallToolResult::structured(value),
        Err(error) => CallToolResult::error(vec![ContentBlock::text(error.message())]),
    }
}

/// Returns the state of an agent.
fn summary(agent: &Agent) -> Value {
    let mut value = json!({
        "id": agent.id,
        "name": agent.name,
        "program": agent.program,
        "state": agent.state,
        "workspace": agent.jail.as_ref().and_then(|jail| jail.workdir.clone()),
    });
    if agent.exited_at.is_some() {
        value["exit"] = short_exit(agent.exit).into();
    }
    if let Some(view) = &agent.view {
        value["turns"] = view.turns.into();
        value["cost_usd"] = view.cost_usd.into();
        if let Some(tool) = &view.current_tool {
            value["tool"] = tool.as_str().into();
        }
        if let Some(error) = &view.last_error {
            value["last_error"] = error.as_str().into();
        }
    }
    value
}

/// Returns the end of an agent's transcript, and its open questions.
async fn transcript(client: &Client, agent: &Agent) -> Result<(String, Vec<Question>), CliError> {
    // The output may have grown.
    let agent = client.get_agent(&agent.id).await?;
    let ranges = agent.written().map(|(stream, written)| StreamRange {
        stream,
        start: written.saturating_sub(HISTORY),
        end: written,
    });
    let mut reader = OutputReader::new(client, &agent.id, &ranges, false);
    let mut transcript = Transcript::new(agent.runtime);
    if agent.stdout_bytes > HISTORY {
        transcript.skip_gap();
    }
    let mut formatter = TranscriptFormatter::new(false);
    let mut text = String::new();
    while let Some(chunk) = reader.next().await? {
        let items = match chunk.stream {
            Stream::Stdout => transcript.push_stdout(&chunk.bytes),
            Stream::Stderr => transcript.push_stderr(&chunk.bytes),
        };
        for item in items {
            text.push_str(&formatter.format(&item));
        }
    }
    text.push_str(formatter.end_line());
    let mut questions = open_questions(&mut transcript);
    if agent.exited_at.is_some() {
        questions.clear();
    }
    Ok((text, questions))
}

/// Takes the open questions of a transcript, oldest first.
fn open_questions(transcript: &mut Transcript) -> Vec<Question> {
    let mut questions = Vec::new();
    while let Some(question) = transcript.open_question().cloned() {
        transcript.close_question();
        questions.push(question);
    }
    questions
}

/// Returns the end of a text with at most this number of characters.
fn end(text: &str, max_chars: usize) -> &str {
    let start = text.char_indices().rev().take(max_chars).last();
    start.map_or("", |(start, _)| &text[start..])
}

#[cfg(test)]
mod tests {
    use colibri_client::AgentRuntime;

    use super::*;

    fn questions(commands: &[&str]) -> Vec<Question> {
        let mut transcript = Transcript::new(AgentRuntime::Claude);
        for command in commands {
            let event = json!({"type": "control_request", "request_id": command, "request": {
                "subtype": "can_use_tool", "tool_name": "Bash", "input": {"command": command},
            }});
            transcript.push_stdout(format!("{event}\n").as_bytes());
        }
        open_questions(&mut transcript)
    }

    #[test]
    fn question_keeps_its_number_until_another_is_asked() {
        let mut shown = ShownQuestions::default();
        let asked = questions(&["a", "b"]);
        for (agent, question, expected) in [
            ("x", &asked[0], 1),
            ("x", &asked[0], 1),
            ("y", &asked[0], 2),
            ("x", &asked[1], 3),
            ("x", &asked[0], 4),
        ] {
            assert!(!shown.is_shown(agent, shown.count + 1, question));
            assert_eq!(shown.number(agent, question), expected);
            assert!(shown.is_shown(agent, expected, question));
        }
        assert!(!shown.is_shown("x", 4, &asked[1]));
        shown.forget("x");
        assert!(!shown.is_shown("x", 4, &asked[0]));
    }

    #[test]
    fn answered_question_is_not_open_while_another_is() {
        let mut shown = ShownQuestions::default();
        let asked = questions(&["a", "b"]);
        assert_eq!(asked.len(), 2);
        shown.answer("x", &asked[0]);
        assert_eq!(shown.open("x", asked.clone()), asked[1..]);
        assert_eq!(shown.open("y", asked.clone()), asked);
        shown.answer("x", &asked[1]);
        assert_eq!(shown.open("x", asked.clone()), asked, "asked again");
        for _ in 0..2 * MAX_ANSWERED {
            shown.answer("x", &asked[1]);
        }
        assert_eq!(shown.answered["x"].len(), MAX_ANSWERED);
    }

    #[test]
    fn end_of_text_is_cut_between_characters() {
        for (text, max_chars, expected) in [
            ("", 3, ""),
            ("äöü", 2, "öü"),
            ("äöü", 3, "äöü"),
            ("abc", 0, ""),
            ("abc", 9, "abc"),
        ] {
            assert_eq!(end(text, max_chars), expected, "{text} {max_chars}");
        }
    }
}
