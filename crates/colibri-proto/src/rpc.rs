//! JSON-RPC 2.0 envelopes, and every method as a variant, so that a server's match is complete.

use colibri_jail_core::JailConfig;
use memchr::memmem;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::codec::encode_around;
use crate::events::{
    ExitEvent, KillEvent, MissedEvent, OutputEvent, RemovedEvent, RunEvent, SpawnedEvent,
    StateEvent,
};
use crate::id::{MAX_ID, RequestId};
use crate::wire::{
    Empty, IdParams, InputParams, KillParams, ListParams, ReadParams, RestartAgentParams,
    SubscribeParams, Subscription, UsageParams,
};
use colibri_types::SpawnRequest;

use crate::{ErrorKind, RpcError};

/// Every method, with its parameters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "method", content = "params", rename_all = "kebab-case")]
pub enum Call {
    /// Who answers.
    Version(Empty),
    /// Start an agent.
    SpawnAgent(SpawnRequest),
    /// What `spawn-agent` would execute.
    ExplainSpawn(SpawnRequest),
    /// All agents.
    ListAgents(ListParams),
    /// One agent.
    GetAgent(IdParams),
    /// One agent, once it has ended.
    WaitAgent(IdParams),
    /// The runs of an agent that was started again.
    ListRuns(IdParams),
    /// What agents use: CPU time, memory, processes.
    GetUsage(UsageParams),
    /// Forget an agent that has ended, and delete its journals.
    RemoveAgent(IdParams),
    /// End an agent.
    KillAgent(KillParams),
    /// Restart a running agent, or spawn an ended agent again.
    RestartAgent(RestartAgentParams),
    /// Write to an agent's stdin.
    SendInput(InputParams),
    /// Close an agent's stdin.
    CloseInput(IdParams),
    /// Read what an agent has written.
    ReadJournal(ReadParams),
    /// Be told what happens.
    Subscribe(SubscribeParams),
    /// Be told no more.
    Unsubscribe(Subscription),
    /// Look whether agents can be run.
    Doctor(Empty),
    /// The profiles that a spawn may name.
    ListProfiles(Empty),
    /// Read the settings file again.
    ReloadConfig(Empty),
    /// End the daemon; agents go on.
    Shutdown(Empty),
}

impl Call {
    /// The names of all methods.
    pub const METHODS: &'static [&'static str] = &[
        "version",
        "spawn-agent",
        "explain-spawn",
        "list-agents",
        "get-agent",
        "wait-agent",
        "list-runs",
        "get-usage",
        "remove-agent",
        "kill-agent",
        "restart-agent",
        "send-input",
        "close-input",
        "read-journal",
        "subscribe",
        "unsubscribe",
        "doctor",
        "list-profiles",
        "reload-config",
        "shutdown",
    ];
}

/// A request whose method has not been looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The caller's number or text; absent: no answer is wanted.
    pub id: Option<RequestId>,
    method: String,
    params: Value,
}

/// The error answer to a frame that is not a valid request.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestRefusal {
    /// The id of the request; null if it cannot be read.
    pub id: RequestId,
    /// What is wrong with it.
    pub error: RpcError,
}

/// The fields of a request as raw JSON.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(default, borrow, deserialize_with = "present")]
    jsonrpc: Option<&'a RawValue>,
    #[serde(default, borrow, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(default, borrow, deserialize_with = "present")]
    method: Option<&'a RawValue>,
    #[serde(default, borrow, deserialize_with = "present")]
    params: Option<&'a RawValue>,
}

/// Deserializes a present field, so that null differs from an absent field.
fn present<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    Deserialize::deserialize(from).map(Some)
}

fn invalid(message: &str) -> RpcError {
    RpcError::new(ErrorKind::InvalidRequest, message)
        .hint("send {\"jsonrpc\":\"2.0\",\"id\":…,\"method\":…,\"params\":{…}}")
}

fn no_json(error: &serde_json::Error) -> RpcError {
    RpcError::new(ErrorKind::ParseError, format!("frame is not JSON: {error}"))
        .hint("send one JSON object in UTF-8 a line, nested at most 127 deep")
}

/// Returns the error for a frame that cannot be deserialized as a request.
fn not_an_object(frame: &[u8]) -> RpcError {
    match serde_json::from_slice(frame) {
        Err(error) => no_json(&error),
        Ok(Value::Array(_)) => invalid("batches are not supported; send one request a line"),
        Ok(Value::Object(_)) => invalid("a field of the request is there twice"),
        Ok(_) => invalid("a request is a JSON object"),
    }
}

impl Request {
    /// Parses a frame like [`Request::read`], for callers that do not answer it.
    ///
    /// # Errors
    /// The frame is not JSON, or not a valid request.
    pub fn parse(frame: &[u8]) -> Result<Self, RpcError> {
        Self::read(frame).map_err(|refusal| refusal.error)
    }

    /// Parses a frame.
    ///
    /// # Errors
    /// The frame is not JSON, or not a valid request: the answer to send, with the id of the request if it can be read.
    pub fn read(frame: &[u8]) -> Result<Self, RequestRefusal> {
        let not_an_object = || RequestRefusal {
            id: RequestId::null(),
            error: not_an_object(frame),
        };
        // serde reads an array as the fields in their order.
        if frame.trim_ascii_start().first() != Some(&b'{') {
            return Err(not_an_object());
        }
        let fields: Fields<'_> = serde_json::from_slice(frame).map_err(|_| not_an_object())?;
        let id = match fields.id.map(RequestId::of) {
            Some(None) => {
                let message =
                    format!("\"id\" must be a number, a text or null, of at most {MAX_ID} bytes");
                return Err(RequestRefusal {
                    id: RequestId::null(),
                    error: invalid(&message),
                });
            }
            Some(Some(id)) => Some(id),
            None => None,
        };
        match Self::method_and_params(&fields) {
            Ok((method, params)) => Ok(Self { id, method, params }),
            Err(error) => Err(RequestRefusal {
                id: id.unwrap_or_else(RequestId::null),
                error,
            }),
        }
    }

    fn method_and_params(fields: &Fields<'_>) -> Result<(String, Value), RpcError> {
        let text = |field: Option<&RawValue>| serde_json::from_str::<String>(field?.get()).ok();
        if text(fields.jsonrpc).as_deref() != Some("2.0") {
            return Err(invalid("\"jsonrpc\" must be \"2.0\""));
        }
        let Some(method) = text(fields.method) else {
            return Err(invalid("\"method\" must be a string"));
        };
        let params = fields.params.map_or("null", RawValue::get);
        match serde_json::from_str(params) {
            Ok(Value::Null) => Ok((method, json!({}))),
            Ok(params @ Value::Object(_)) => Ok((method, params)),
            Ok(_) => Err(invalid("\"params\" must be an object")),
            Err(error) => Err(no_json(&error)),
        }
    }

    /// The name of the method, if there is such a one.
    #[must_use]
    pub fn known_method(&self) -> Option<&'static str> {
        let named = |method: &&&str| **method == self.method;
        Call::METHODS.iter().find(named).copied()
    }

    /// The method with its parameters.
    ///
    /// # Errors
    /// There is no such method, or the parameters do not fit.
    pub fn call(self) -> Result<Call, RpcError> {
        if !Call::METHODS.contains(&self.method.as_str()) {
            let shown: String = self.method.chars().take(60).collect();
            return Err(RpcError::new(
                ErrorKind::UnknownMethod,
                format!("unknown method {shown:?}"),
            )
            .hint(format!("known methods: {}", Call::METHODS.join(", "))));
        }
        if let Some(jail) = self.params.get("jail").filter(|jail| !jail.is_null())
            && let Err(error) = JailConfig::deserialize(jail)
        {
            return Err(
                RpcError::new(ErrorKind::InvalidJail, format!("jail: {error}")).hint(format!(
                    "a jail has the fields {}",
                    jail_fields().join(", ")
                )),
            );
        }
        let method = self.method;
        let call = Map::from_iter([
            ("method".to_owned(), Value::from(method.as_str())),
            ("params".to_owned(), self.params),
        ]);
        serde_json::from_value(Value::Object(call))
            .map_err(|error| RpcError::new(ErrorKind::InvalidParams, format!("{method}: {error}")))
    }
}

/// Returns the field names of a jail from its schema, which a test compares with the type.
fn jail_fields() -> Vec<String> {
    let schema = schemars::schema_for!(colibri_jail_core::JailConfig);
    let fields = schema.get("properties").and_then(Value::as_object);
    fields.map_or_else(Vec::new, |fields| fields.keys().cloned().collect())
}

/// A result as it is written. Whoever knows its type reads it.
pub type RawResult = Box<RawValue>;

/// An answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Response {
    jsonrpc: Version,
    /// The request's.
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
    /// The answer to a request; `id` null where the request could not be read.
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

    /// As it goes over the wire, with its LF.
    ///
    /// # Errors
    /// It does not fit into a frame.
    pub fn encode(&self) -> Result<Vec<u8>, crate::FrameError> {
        let length = self.result.as_ref().map_or(0, |result| result.get().len());
        encode_around(self, length)
    }

    /// The result, or the error.
    ///
    /// # Errors
    /// The request failed, or the answer says neither.
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

/// What a subscriber is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "method", content = "params", rename_all = "kebab-case")]
pub enum Notification {
    /// An agent wrote something.
    AgentOutput(OutputEvent),
    /// An agent is doing something else.
    AgentState(StateEvent),
    /// An agent has ended.
    AgentExit(ExitEvent),
    /// An agent was started.
    AgentSpawned(SpawnedEvent),
    /// An agent was started again.
    AgentRun(RunEvent),
    /// Somebody asked for the end of an agent.
    AgentKill(KillEvent),
    /// Agents came and went unseen.
    AgentsMissed(MissedEvent),
    /// An agent is forgotten.
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
    /// As it goes over the wire, with its LF.
    ///
    /// # Errors
    /// It does not fit into a frame.
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
        encode_around(&framed, length)
    }

    /// The subscription that it belongs to.
    #[must_use]
    pub fn subscription(&self) -> u64 {
        match self {
            Self::AgentOutput(event) => event.subscription,
            Self::AgentState(event) => event.subscription,
            Self::AgentExit(event) => event.subscription,
            Self::AgentSpawned(event) => event.subscription,
            Self::AgentRun(event) => event.subscription,
            Self::AgentKill(event) => event.subscription,
            Self::AgentsMissed(event) => event.subscription,
            Self::AgentRemoved(event) => event.subscription,
        }
    }
}

impl Call {
    /// A request as it goes over the wire, with its LF.
    ///
    /// # Errors
    /// It does not fit into a frame.
    pub fn encode(&self, id: u64) -> Result<Vec<u8>, crate::FrameError> {
        crate::encode_frame(&Framed {
            jsonrpc: Version::Two,
            id: Some(id),
            body: self,
        })
    }
}

/// What a client reads.
#[derive(Debug, Clone)]
pub enum ServerMessage {
    /// Something happened.
    Notification(Notification),
    /// An answer.
    Response(Response),
}

impl ServerMessage {
    /// Reads a frame.
    ///
    /// # Errors
    /// It is neither, or a notification of a later version.
    pub fn parse(frame: &[u8]) -> Result<Self, serde_json::Error> {
        let notification = || serde_json::from_slice(frame).map(Self::Notification);
        let response = || serde_json::from_slice(frame).map(Self::Response);
        // What it is shows where it begins, as we write it; what another has written is tried both ways.
        let front = frame.get(..FRONT).unwrap_or(frame);
        match memmem::find(front, b"\"method\"") {
            Some(_) => notification().or_else(|_| response()),
            None => response().or_else(|_| notification()),
        }
    }
}

/// The method of a notification of ours begins within so many bytes.
const FRONT: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(frame: &[u8]) -> (ErrorKind, String) {
        let error = Request::parse(frame).and_then(Request::call).unwrap_err();
        (error.data.kind, error.message)
    }

    #[test]
    fn what_is_no_request_gets_the_error_that_says_why() {
        use ErrorKind::{InvalidJail, InvalidParams, InvalidRequest, ParseError, UnknownMethod};
        let deep = format!("{}1{}", "[".repeat(500), "]".repeat(500));
        let mut shown = String::new();
        for (frame, kind) in [
            (&b"{"[..], ParseError),
            (b"\xff\xfe{}", ParseError),
            (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\xff\"}", ParseError),
            (deep.as_bytes(), ParseError),
            (b"7", InvalidRequest),
            (b"[]", InvalidRequest),
            (br#"{"id":1,"method":"version"}"#, InvalidRequest),
            (br#"{"jsonrpc":"2.0","id":{},"method":"version"}"#, InvalidRequest),
            (br#"{"jsonrpc":"2.0","id":1}"#, InvalidRequest),
            (br#"{"jsonrpc":"2.0","id":1,"method":"version","params":[1]}"#, InvalidRequest),
            (br#"{"jsonrpc":"2.0","id":1,"method":"make-coffee"}"#, UnknownMethod),
            (br#"{"jsonrpc":"2.0","id":1,"method":"get-agent"}"#, InvalidParams),
            (br#"{"jsonrpc":"2.0","id":1,"method":"spawn-agent","params":{"program":7}}"#, InvalidParams),
            (br#"{"jsonrpc":"2.0","id":1,"method":"spawn-agent","params":{"program":"x","jail":{"pth":"/"}}}"#, InvalidJail),
            (br#"{"jsonrpc":"2.0","id":1,"method":"spawn-agent","params":{"program":"x","jail":"web"}}"#, InvalidJail),
        ] {
            let (found, message) = refusal(frame);
            assert_eq!(found, kind, "{message}");
            shown.push_str(&format!("{} {message}\n", found.code()));
        }
        insta::assert_snapshot!(shown);
    }

    /// Returns the id in the answer to a frame; `None` for a notification.
    fn answered_id(frame: &str) -> Option<String> {
        let id = match Request::read(frame.as_bytes()) {
            Ok(request) => request.id?,
            Err(refusal) => refusal.id,
        };
        let answer = Response::new(id, Err(RpcError::new(ErrorKind::Internal, "no")));
        let text = String::from_utf8(answer.encode().unwrap()).unwrap();
        let id = text.split("\"id\":").nth(1)?;
        Some(id.split(",\"error\"").next()?.to_owned())
    }

    #[test]
    fn id_is_answered_as_it_was_written() {
        let valid = |id: &str| format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"version"}}"#);
        for id in [
            "1",
            "-7",
            "0",
            "18446744073709551615",
            "18446744073709551616",
            "123456789012345678901234567890",
            "1.50",
            "1e400",
            "\"a\"",
            r#""\u00e4\n\"""#,
            "\"\"",
            "null",
        ] {
            assert_eq!(answered_id(&valid(id)).as_deref(), Some(id));
            // Even if the rest of the request is invalid.
            for (wrong, kind) in [
                (
                    format!(r#"{{"id":{id},"method":"version"}}"#),
                    ErrorKind::InvalidRequest,
                ),
                (
                    format!(r#"{{"jsonrpc":"1.0","id":{id},"method":"version"}}"#),
                    ErrorKind::InvalidRequest,
                ),
                (
                    format!(r#"{{"jsonrpc":"2.0","id":{id}}}"#),
                    ErrorKind::InvalidRequest,
                ),
                (
                    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":7}}"#),
                    ErrorKind::InvalidRequest,
                ),
                (
                    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"version","params":[1]}}"#),
                    ErrorKind::InvalidRequest,
                ),
                (
                    format!(r#"{{"jsonrpc":"2.0","method":"version","params":"x","id":{id}}}"#),
                    ErrorKind::InvalidRequest,
                ),
                (
                    format!(
                        r#"{{"jsonrpc":"2.0","id":{id},"method":"version","params":{{"a":"\ud800"}}}}"#
                    ),
                    ErrorKind::ParseError,
                ),
            ] {
                let refusal = Request::read(wrong.as_bytes()).unwrap_err();
                assert_eq!(refusal.error.data.kind, kind, "{wrong}");
                assert_eq!(answered_id(&wrong).as_deref(), Some(id), "{wrong}");
            }
        }
        let long = format!("\"{}\"", "x".repeat(MAX_ID));
        let (long, twice) = (
            valid(&long),
            r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"version"}"#,
        );
        for frame in [
            "{",
            "[]",
            "7",
            &long,
            twice,
            &valid("{}"),
            &valid("[1]"),
            &valid("true"),
        ] {
            assert_eq!(answered_id(frame).as_deref(), Some("null"), "{frame}");
        }
        assert_eq!(answered_id(r#"{"jsonrpc":"2.0","method":"version"}"#), None);
    }

    #[test]
    fn hint_for_a_jail_names_all_its_fields() {
        let frame =
            br#"{"jsonrpc":"2.0","id":1,"method":"spawn-agent","params":{"jail":{"pth":"/"}}}"#;
        let error = Request::parse(frame).and_then(Request::call).unwrap_err();
        let hint = error.data.hint.unwrap();
        // The message of serde lists the fields of the type itself.
        let listed = error.message.split("expected one of ").nth(1).unwrap();
        let fields: Vec<&str> = listed.split('`').skip(1).step_by(2).collect();
        assert!(fields.len() >= 10, "{fields:?}");
        for field in fields {
            assert!(hint.contains(field), "{field} is not in: {hint}");
        }
    }

    #[test]
    fn every_method_is_listed_and_reads_back() {
        let schema = serde_json::to_value(schemars::schema_for!(Call)).unwrap();
        let text = schema.to_string();
        for method in Call::METHODS {
            assert!(
                text.contains(&format!("\"const\":\"{method}\"")),
                "{method} is no variant"
            );
        }
        assert_eq!(
            schema["oneOf"].as_array().unwrap().len(),
            Call::METHODS.len()
        );
        let call = Call::KillAgent(KillParams {
            id: "a".into(),
            signal: None,
            grace_ms: Some(5),
            escalate: true,
            no_restart: false,
        });
        let frame = call.encode(7).unwrap();
        let request = Request::parse(&frame).unwrap();
        assert_eq!(request.id, Some(7.into()));
        assert_eq!(request.call().unwrap(), call);
    }

    #[test]
    fn unknown_fields_outside_a_jail_are_ignored() {
        let frame = br#"{"jsonrpc":"2.0","method":"spawn-agent","params":{"program":"x","colour":"red"},"extra":1}"#;
        let request = Request::parse(frame).unwrap();
        assert_eq!(request.id, None);
        assert!(
            matches!(request.call().unwrap(), Call::SpawnAgent(params) if params.program.as_deref() == Some("x"))
        );
    }

    #[test]
    fn a_message_is_understood_in_any_order_of_its_fields() {
        let removed = r#""method":"agent-removed","params":{"subscription":1,"id":"a"}"#;
        let turned = r#""params":{"subscription":1,"id":"a"},"method":"agent-removed""#;
        for (fields, understood) in [
            (format!(r#""jsonrpc":"2.0",{removed}"#), "notification"),
            (format!(r#"{turned},"jsonrpc":"2.0""#), "notification"),
            (format!(r#"{:40}{turned}"#, ""), "notification"),
            (r#""jsonrpc":"2.0","id":7,"result":{}"#.into(), "result"),
            (r#""result":{"method":7},"id":7,"jsonrpc":"2.0""#.into(), "result"),
            (r#""jsonrpc":"2.0","id":"\"method\"","result":[]"#.into(), "result"),
            (
                r#""jsonrpc":"2.0","id":7,"error":{"code":-32000,"message":"no","data":{"kind":"internal"}}"#.into(),
                "no",
            ),
            (
                r#""jsonrpc":"2.0","id":7"#.into(),
                "the answer has neither a result nor an error",
            ),
            (r#""jsonrpc":"2.0","method":"agent-danced","params":{}"#.into(), "nothing"),
            (r#""jsonrpc":"1.0","id":7,"result":{}"#.into(), "nothing"),
        ] {
            let seen = match ServerMessage::parse(format!("{{{fields}}}").as_bytes()) {
                Ok(ServerMessage::Notification(Notification::AgentRemoved(_))) => {
                    "notification".to_owned()
                }
                Ok(ServerMessage::Notification(other)) => format!("{other:?}"),
                Ok(ServerMessage::Response(response)) => match response.into_result() {
                    Ok(_) => "result".to_owned(),
                    Err(error) => error.message,
                },
                Err(_) => "nothing".to_owned(),
            };
            assert_eq!(seen, understood, "{fields}");
        }
    }

    #[test]
    fn environment_values_are_not_shown() {
        let params = SpawnRequest {
            env: crate::Env([("TOKEN".to_owned(), "s3cret".to_owned())].into()),
            ..SpawnRequest::default()
        };
        let shown = format!("{:?}", Call::SpawnAgent(params));
        assert!(shown.contains("TOKEN") && !shown.contains("s3cret"));
    }
}
