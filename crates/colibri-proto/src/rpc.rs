//! JSON-RPC 2.0 requests, responses and notifications; each method is a variant, so a server's match is exhaustive.

use colibri_types::SpawnRequest;
use memchr::memmem;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use strum::{IntoStaticStr, VariantNames};

use crate::agents::{ListParams, UsageParams};
use crate::codec::encode_frame;
use crate::events::{
    ExitEvent, KillEvent, MissedEvent, NetworkEvent, OutputEvent, RemovedEvent, RunEvent,
    SpawnedEvent, StateEvent, TerminalEvent,
};
use crate::id::RequestId;
use crate::wire::{
    Empty, IdParams, InputParams, KillParams, ReadParams, ResizeParams, RestartAgentParams,
    SubscribeParams, Subscription,
};
use crate::{ErrorKind, RpcError};

/// A method with its parameters.
#[derive(
    Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, IntoStaticStr, VariantNames,
)]
#[serde(tag = "method", content = "params", rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum Call {
    /// Returns the name and versions of the daemon.
    Version(Empty),
    /// Starts an agent.
    SpawnAgent(SpawnRequest),
    /// Returns the command that `spawn-agent` would execute.
    ExplainSpawn(SpawnRequest),
    /// Lists agents, page by page.
    ListAgents(ListParams),
    /// Returns an agent.
    GetAgent(IdParams),
    /// Waits until an agent has ended, and returns it.
    WaitAgent(IdParams),
    /// Lists the ended runs of an agent with a restart policy.
    ListRuns(IdParams),
    /// Measures the CPU time, memory and processes of running agents.
    GetUsage(UsageParams),
    /// Removes an ended agent and its journals.
    RemoveAgent(IdParams),
    /// Kills or signals an agent.
    KillAgent(KillParams),
    /// Restarts a running agent, or spawns an ended agent again.
    RestartAgent(RestartAgentParams),
    /// Writes to an agent's stdin.
    SendInput(InputParams),
    /// Closes an agent's stdin.
    CloseInput(IdParams),
    /// Reads the output of an agent.
    ReadJournal(ReadParams),
    /// Subscribes to one agent or to all agents.
    Subscribe(SubscribeParams),
    /// Tells the size of a subscriber's terminal.
    ResizeTerminal(ResizeParams),
    /// Unsubscribes.
    Unsubscribe(Subscription),
    /// Checks whether this host can run agents.
    Doctor(Empty),
    /// Lists the profiles in the settings file.
    ListProfiles(Empty),
    /// Reloads the settings file.
    ReloadConfig(Empty),
    /// Stops the daemon; agents keep running.
    Shutdown(Empty),
}

impl Call {
    /// Names of all methods.
    pub const METHODS: &'static [&'static str] = Self::VARIANTS;

    /// Returns the name of the method.
    #[must_use]
    pub fn method(&self) -> &'static str {
        self.into()
    }
}

/// A result as raw JSON: the caller knows its type from the method.
pub type RawResult = Box<RawValue>;

/// A response to a request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Response {
    jsonrpc: Version,
    /// ID of the request.
    pub id: RequestId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result: Option<RawResult>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<RpcError>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
enum Version {
    #[serde(rename = "2.0")]
    Two,
}

impl Response {
    /// Returns the response to a request; `id` is null if the request could not be read.
    #[must_use]
    pub fn new(id: impl Into<RequestId>, outcome: Result<RawResult, RpcError>) -> Self {
        let (result, error) = match outcome {
            Ok(result) => (Some(result), None),
            Err(error) => (None, Some(error)),
        };
        Self {
            jsonrpc: Version::Two,
            id: id.into(),
            result,
            error,
        }
    }

    /// Encodes the response as a frame with its LF.
    ///
    /// # Errors
    /// The response does not fit into a frame.
    pub fn encode(&self) -> Result<Vec<u8>, crate::FrameError> {
        let length = self.result.as_ref().map_or(0, |result| result.get().len());
        encode_frame(self, length)
    }

    /// Returns the result.
    ///
    /// # Errors
    /// The request failed, or the response has neither a result nor an error.
    pub fn into_result(self) -> Result<RawResult, RpcError> {
        match (self.error, self.result) {
            (Some(error), _) => Err(error),
            (None, Some(result)) => Ok(result),
            (None, None) => Err(RpcError::new(
                ErrorKind::Internal,
                "the answer has neither a result nor an error",
            )),
        }
    }
}

/// A notification to a subscriber.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "method", content = "params", rename_all = "kebab-case")]
pub enum Notification {
    /// An agent wrote output.
    AgentOutput(OutputEvent),
    /// The state, the tool or the last error of an agent changed.
    AgentState(StateEvent),
    /// The size of an agent's terminal.
    AgentTerminal(TerminalEvent),
    /// An agent has ended.
    AgentExit(ExitEvent),
    /// An agent was spawned.
    AgentSpawned(SpawnedEvent),
    /// An agent was restarted.
    AgentRun(RunEvent),
    /// A client requested a kill or a signal.
    AgentKill(KillEvent),
    /// The proxy of an agent refused a connection or a request.
    AgentNetwork(NetworkEvent),
    /// Agents were spawned and removed before the subscription could follow them.
    AgentsMissed(MissedEvent),
    /// An agent was removed.
    AgentRemoved(RemovedEvent),
}

#[derive(Serialize)]
struct Framed<'a, T> {
    jsonrpc: Version,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    #[serde(flatten)]
    body: &'a T,
}

impl Notification {
    /// Encodes the notification as a frame with its LF.
    ///
    /// # Errors
    /// The notification does not fit into a frame.
    pub fn encode(&self) -> Result<Vec<u8>, crate::FrameError> {
        let length = match self {
            Self::AgentOutput(event) => event.data.data.len(),
            _ => 0,
        };
        let framed = Framed {
            jsonrpc: Version::Two,
            id: None,
            body: self,
        };
        encode_frame(&framed, length)
    }
}

impl Call {
    /// Encodes the call as a request with its LF.
    ///
    /// # Errors
    /// The request does not fit into a frame.
    pub fn encode(&self, id: u64) -> Result<Vec<u8>, crate::FrameError> {
        let framed = Framed {
            jsonrpc: Version::Two,
            id: Some(id),
            body: self,
        };
        encode_frame(&framed, 0)
    }
}

/// A frame from the daemon.
#[derive(Debug, Clone)]
pub enum ServerMessage {
    /// A notification.
    Notification(Notification),
    /// A response.
    Response(Response),
}

impl ServerMessage {
    /// Parses a frame.
    ///
    /// # Errors
    /// The frame is neither a response nor a known notification.
    pub fn parse(frame: &[u8]) -> Result<Self, serde_json::Error> {
        let notification = || serde_json::from_slice(frame).map(Self::Notification);
        let response = || serde_json::from_slice(frame).map(Self::Response);
        // In a notification of this daemon the method comes first. Frames with another order are parsed both ways.
        let prefix = frame.get(..METHOD_PREFIX_BYTES).unwrap_or(frame);
        match memmem::find(prefix, b"\"method\"") {
            Some(_) => notification().or_else(|_| response()),
            None => response().or_else(|_| notification()),
        }
    }
}

/// Number of bytes at the start of a notification of this daemon that contain the word `method`.
const METHOD_PREFIX_BYTES: usize = 32;

#[cfg(test)]
mod tests;
