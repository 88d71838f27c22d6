//! Drives `codex app-server`: JSON-RPC without the member `jsonrpc`, one thread, and turns in it. Messages: `codex
//! app-server generate-json-schema`, version 0.171.

use std::collections::{HashMap, VecDeque};

use serde_json::{Value, json};

use crate::session::{Step, Steps};

/// What a request was sent for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Initialize,
    OpenThread,
    StartTurn,
    Steer,
    /// Its answer does not matter.
    Other,
}

pub(crate) struct CodexDriver {
    steps: Steps,
    /// The thread to continue.
    session: Option<String>,
    ask: bool,
    next_id: u64,
    /// Requests without an answer.
    requests: HashMap<u64, Purpose>,
    thread: Option<String>,
    turn: Option<String>,
    /// A prompt that waits for the thread.
    prompt: Option<String>,
    /// An abort that waits for the id of the turn.
    /// Texts of requests to steer without an answer, in order.
    steered: VecDeque<String>,
    is_aborting: bool,
}

impl CodexDriver {
    /// Starts to open a thread. `ask` is whether the agent asks before it runs commands.
    pub(crate) fn open(session: Option<String>, ask: bool, steps: Steps) -> Self {
        let mut driver = Self {
            steps,
            session,
            ask,
            next_id: 0,
            requests: HashMap::new(),
            thread: None,
            turn: None,
            prompt: None,
            steered: VecDeque::new(),
            is_aborting: false,
        };
        let client =
            json!({"name": "colibri", "title": "Colibri", "version": env!("CARGO_PKG_VERSION")});
        // The experimental request thread/backgroundTerminals/clean ends the commands of an aborted turn.
        driver.request(
            Purpose::Initialize,
            "initialize",
            json!({"clientInfo": client, "capabilities": {"experimentalApi": true}}),
        );
        driver
    }

    /// Starts a turn.
    pub(crate) fn prompt(&mut self, text: String) {
        let Some(thread) = &self.thread else {
            self.prompt = Some(text);
            return;
        };
        let params = json!({"threadId": thread, "input": text_input(&text)});
        self.request(Purpose::StartTurn, "turn/start", params);
    }

    /// Adds a prompt to the current turn.
    pub(crate) fn steer(&mut self, text: String) {
        if self.thread.is_none() {
            // Nothing was sent yet: the first prompt contains both.
            let prompt = self.prompt.get_or_insert_default();
            prompt.push('\n');
            prompt.push_str(&text);
            return;
        }
        self.steered.push_back(text.clone());
        let params = match &self.turn {
            Some(turn) => {
                json!({"threadId": self.thread, "expectedTurnId": turn, "input": text_input(&text)})
            }
            // The turn has not started; a second start adds to it.
            None => json!({"threadId": self.thread, "input": text_input(&text)}),
        };
        let method = match &self.turn {
            Some(_) => "turn/steer",
            None => "turn/start",
        };
        self.request(Purpose::Steer, method, params);
    }

    /// Cancels the current turn.
    pub(crate) fn abort(&mut self) {
        let (Some(thread), Some(turn)) = (self.thread.clone(), self.turn.clone()) else {
            self.is_aborting = true;
            return;
        };
        let params = json!({"threadId": thread, "turnId": turn});
        self.request(Purpose::Other, "turn/interrupt", params);
        self.request(
            Purpose::Other,
            "thread/backgroundTerminals/clean",
            json!({"threadId": thread}),
        );
    }

    /// Processes a message of the agent.
    pub(crate) fn message(&mut self, line: &str) {
        let Ok(message) = serde_json::from_str::<Value>(line) else {
            return;
        };
        match message["method"].as_str() {
            None => self.response(&message),
            Some("turn/started") => {
                self.turn = message["params"]["turn"]["id"].as_str().map(str::to_owned);
                if std::mem::take(&mut self.is_aborting) {
                    self.abort();
                }
            }
            Some("turn/completed") => {
                self.turn = None;
                self.is_aborting = false;
                let turn = &message["params"]["turn"];
                let failure = (turn["status"] == "failed").then(|| error_text(&turn["error"]));
                self.step(Step::Ended(failure));
            }
            Some(method) if !message["id"].is_null() && !method.ends_with("/requestApproval") => {
                let error = json!({"code": -32601, "message": "not supported by this client"});
                self.send(&json!({"id": message["id"], "error": error}));
            }
            Some(_) => {}
        }
    }

    fn response(&mut self, message: &Value) {
        let id = message["id"].as_u64();
        let Some(purpose) = id.and_then(|id| self.requests.remove(&id)) else {
            return;
        };
        let error = &message["error"];
        match purpose {
            Purpose::Initialize | Purpose::OpenThread if error.is_object() => {
                let message = format!("cannot open a session: {}", error_text(error));
                self.step(Step::Lost(message));
            }
            Purpose::Initialize => {
                self.send(&json!({"method": "initialized"}));
                self.open_thread();
            }
            Purpose::OpenThread => {
                let id = message["result"]["thread"]["id"].as_str();
                self.thread = id.map(str::to_owned);
                self.step(Step::Opened);
                match self.prompt.take() {
                    Some(prompt) if self.thread.is_some() => self.prompt(prompt),
                    _ if self.thread.is_none() => self.step(Step::Lost(
                        "cannot open a session: the answer contains no thread".to_owned(),
                    )),
                    _ => {}
                }
            }
            Purpose::Steer => {
                // The turn had ended: the text is the next prompt.
                let text = self.steered.pop_front().filter(|_| error.is_object());
                if let Some(text) = text {
                    self.step(Step::Refused(text));
                }
            }
            Purpose::StartTurn if error.is_object() => {
                self.is_aborting = false;
                self.step(Step::Ended(Some(error_text(error))));
            }
            Purpose::StartTurn | Purpose::Other => {}
        }
    }

    fn open_thread(&mut self) {
        let policy = if self.ask { "untrusted" } else { "never" };
        // Colibri confines the agent. Its own sandbox needs user namespaces, which a sandbox does not have.
        let mut params = json!({"approvalPolicy": policy, "sandbox": "danger-full-access"});
        if let Ok(directory) = std::env::current_dir() {
            params["cwd"] = directory.to_string_lossy().into();
        }
        let method = match &self.session {
            Some(session) => {
                params["threadId"] = session.as_str().into();
                params["excludeTurns"] = true.into();
                "thread/resume"
            }
            None => "thread/start",
        };
        self.request(Purpose::OpenThread, method, params);
    }

    fn request(&mut self, purpose: Purpose, method: &str, params: Value) {
        let id = self.next_id;
        self.next_id += 1;
        self.requests.insert(id, purpose);
        self.send(&json!({"id": id, "method": method, "params": params}));
    }

    fn send(&self, message: &Value) {
        self.step(Step::Send(message.to_string()));
    }

    fn step(&self, step: Step) {
        // It fails only if the session has ended.
        let _ = self.steps.send(step);
    }
}

fn text_input(text: &str) -> Value {
    json!([{"type": "text", "text": text, "text_elements": []}])
}

fn error_text(error: &Value) -> String {
    error["message"]
        .as_str()
        .map_or_else(|| error.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[test]
    fn messages_of_a_session_are_as_expected() {
        let (steps, mut next) = mpsc::unbounded_channel();
        let mut driver = CodexDriver::open(Some("old".to_owned()), true, steps);
        let mut shown = String::new();
        let mut show = |title: &str| {
            shown.push_str(&format!("{title}\n"));
            while let Ok(step) = next.try_recv() {
                let step = format!("  {step:?}\n");
                let directory = std::env::current_dir().unwrap();
                shown.push_str(&step.replace(directory.to_str().unwrap(), "DIRECTORY"));
            }
        };
        driver.prompt("first".to_owned());
        show("open");
        driver.message(r#"{"id":0,"result":{"userAgent":"x"}}"#);
        show("initialized");
        driver.abort();
        driver.message(r#"{"id":1,"result":{"thread":{"id":"T"}}}"#);
        show("thread opened; the abort waits for the turn");
        driver.message(r#"{"method":"turn/started","params":{"turn":{"id":"U"}}}"#);
        driver.steer("left".to_owned());
        show("turn started");
        driver.message(
            r#"{"method":"item/commandExecution/requestApproval","id":0,"params":{"command":"ls"}}"#,
        );
        driver.message(r#"{"method":"item/tool/requestUserInput","id":1,"params":{}}"#);
        show("requests of the agent");
        driver.message(
            r#"{"method":"turn/completed","params":{"turn":{"id":"U","status":"interrupted"}}}"#,
        );
        driver.prompt("second".to_owned());
        driver.message(r#"{"id":6,"error":{"code":-32600,"message":"no"}}"#);
        driver.message("not json");
        show("second prompt is refused");
        insta::assert_snapshot!(shown);
    }
}
