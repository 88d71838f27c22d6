//! An agent of the Agent Client Protocol that sends its client the requests of each prompt, and answers with the results.
//!
//! A prompt is a JSON array of `[method, params]`; `"$T"` stands for the terminal that was created last.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{self, Lines, StdinLock, Write};

use serde_json::{Value, json};

struct Agent {
    input: Lines<StdinLock<'static>>,
    requests: u64,
}

impl Agent {
    fn send(message: &Value) {
        let mut out = io::stdout().lock();
        writeln!(out, "{message}").unwrap();
        out.flush().unwrap();
    }

    fn next(&mut self) -> Value {
        match self.input.next() {
            Some(line) => serde_json::from_str(&line.unwrap()).unwrap(),
            None => std::process::exit(0),
        }
    }

    /// Sends a request and returns its result or error.
    fn request(&mut self, method: &str, params: &Value) -> Value {
        self.requests += 1;
        let id = self.requests;
        Self::send(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}));
        loop {
            let mut answer = self.next();
            if answer["id"] == id {
                let result = answer["result"].take();
                return if result.is_null() {
                    answer["error"].take()
                } else {
                    result
                };
            }
        }
    }

    fn prompt(&mut self, session: &Value, text: &str) -> Value {
        let requests: Vec<(String, Value)> = serde_json::from_str(text).unwrap();
        let mut terminal = Value::Null;
        let mut results = Vec::new();
        for (method, mut params) in requests {
            params["sessionId"] = session.clone();
            if params["terminalId"] == "$T" {
                params["terminalId"] = terminal.clone();
            }
            let result = self.request(&method, &params);
            if result["terminalId"].is_string() {
                terminal = result["terminalId"].clone();
            }
            results.push(result);
        }
        Value::Array(results)
    }
}

fn main() {
    let mut agent = Agent {
        input: io::stdin().lines(),
        requests: 0,
    };
    loop {
        let message = agent.next();
        let params = &message["params"];
        let result = match message["method"].as_str() {
            Some("initialize") => {
                json!({"protocolVersion": 1, "agentCapabilities": {"loadSession": true}})
            }
            Some("session/new") => json!({"sessionId": "session-1"}),
            Some("session/prompt") => {
                let text = params["prompt"][0]["text"].as_str().unwrap().to_owned();
                let results = agent.prompt(&params["sessionId"], &text);
                let content = json!({"type": "text", "text": results.to_string()});
                Agent::send(
                    &json!({"jsonrpc": "2.0", "method": "session/update", "params": {"sessionId": params["sessionId"], "update": {"sessionUpdate": "agent_message_chunk", "content": content}}}),
                );
                json!({"stopReason": "end_turn"})
            }
            _ if message["id"].is_null() => continue,
            _ => json!({}),
        };
        Agent::send(&json!({"jsonrpc": "2.0", "id": message["id"], "result": result}));
    }
}
