//! A model that follows a script, for real agents: the APIs of OpenAI, Anthropic and Gemini on loopback.
//!
//! The script is in the prompt. Each `[cmd=COMMAND]` is a call of the agent's tool for shell commands; after the last one
//! the model answers with [`ANSWER`]. `[wait]` in a prompt delays the answer until [`ScriptedModel::release`], and `[http401]`
//! refuses the key. A prompt without commands follows the script that the model was started with.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use serde_json::{Map, Value, json};

/// What the model says before a tool call.
pub const ANNOUNCEMENT: &str = "I will run a command.";
/// What the model answers at the end.
pub const ANSWER: &str = "All done. The command has run.";

/// Names of tools for shell commands, preferred first.
const SHELL_TOOLS: &[&str] = &[
    "exec_command",
    "shell_command",
    "shell",
    "bash",
    "run_shell_command",
    "run_commands",
    "execute_command",
];
/// Maximum size of a request, in bytes.
const MAX_REQUEST: u64 = 64 << 20;

/// A running model.
pub struct ScriptedModel {
    pub port: u16,
    gate: Arc<Gate>,
}

#[derive(Default)]
struct Gate {
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl ScriptedModel {
    /// Starts a model.
    pub fn start() -> Self {
        Self::with_script(&[])
    }

    /// Starts a model that answers a prompt without commands with calls for these commands, and then with an answer.
    pub fn with_script(commands: &[String]) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let gate = Arc::<Gate>::default();
        let (shared, script) = (gate.clone(), Arc::new(commands.to_vec()));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (gate, script) = (shared.clone(), script.clone());
                // Errors of a client that goes away are ignored.
                std::thread::spawn(move || serve(&client, &gate, &script));
            }
        });
        Self { port, gate }
    }

    /// Returns the URL, without a path.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Answers the prompts that contain `[wait]`.
    pub fn release(&self) {
        *self.gate.is_open.lock().unwrap() = true;
        self.gate.opened.notify_all();
    }
}

/// A response.
struct Reply {
    status: u16,
    content_type: &'static str,
    body: String,
}

impl Reply {
    fn json(value: &Value) -> Self {
        Self {
            status: 200,
            content_type: "application/json",
            body: value.to_string(),
        }
    }

    /// Returns server-sent events, with their types as names if `named`.
    fn events(events: &[Value], named: bool) -> Self {
        let mut body = String::new();
        for event in events {
            if named {
                body += &format!("event: {}\n", text(&event["type"]));
            }
            body += &format!("data: {event}\n\n");
        }
        if !named {
            body += "data: [DONE]\n\n";
        }
        Self {
            status: 200,
            content_type: "text/event-stream",
            body,
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> impl DoubleEndedIterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn serve(stream: &TcpStream, gate: &Gate, script: &[String]) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let body = read_body(&mut reader)?;
        let request: Value = serde_json::from_slice(&body).unwrap_or_default();
        let reply = answer(&path, &request, gate, script);
        let Reply {
            status,
            content_type,
            body,
        } = reply;
        let head = format!(
            "HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = stream;
        stream.write_all(format!("{head}{body}").as_bytes())?;
    }
}

/// Reads the header fields and the body of a request.
fn read_body(reader: &mut BufReader<&TcpStream>) -> io::Result<Vec<u8>> {
    let (mut length, mut is_chunked) = (0, false);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        is_chunked |= line.starts_with("transfer-encoding:") && line.ends_with("chunked");
    }
    let mut body = Vec::new();
    if !is_chunked {
        reader.take(length).read_to_end(&mut body)?;
        return Ok(body);
    }
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let size = u64::from_str_radix(line.trim(), 16).unwrap_or(0);
        reader.take(size.min(MAX_REQUEST)).read_to_end(&mut body)?;
        reader.read_line(&mut String::new())?;
        if size == 0 {
            return Ok(body);
        }
    }
}

fn answer(path: &str, request: &Value, gate: &Gate, script: &[String]) -> Reply {
    let path = path.split('?').next().unwrap_or_default();
    let api = match path {
        _ if path.ends_with("/chat/completions") => Api::Chat,
        _ if path.ends_with("/responses") => Api::Responses,
        _ if path.ends_with("/messages") => Api::Messages,
        _ if path.contains("enerateContent") => Api::Gemini,
        _ if path.ends_with("/count_tokens") => return Reply::json(&json!({"input_tokens": 9})),
        _ if path.contains(":countTokens") => return Reply::json(&json!({"totalTokens": 9})),
        _ if path.ends_with("/models") => {
            let model = json!({"id": "scripted", "object": "model", "created": 1, "owned_by": "x"});
            return Reply::json(&json!({"object": "list", "data": [model], "has_more": false}));
        }
        _ => return Reply::json(&json!({})),
    };
    let turn = api.turn(request);
    if turn.prompt.contains("[http401]") {
        let error = json!({"type": "authentication_error", "message": "invalid x-api-key", "code": "invalid_api_key"});
        return Reply {
            status: 401,
            ..Reply::json(&json!({"type": "error", "error": error}))
        };
    }
    if turn.prompt.contains("[wait]") && turn.results == 0 {
        let is_open = gate.is_open.lock().unwrap();
        drop(
            gate.opened
                .wait_while(is_open, |is_open| !*is_open)
                .unwrap(),
        );
    }
    let own = commands(&turn.prompt);
    let commands = if own.is_empty() { script } else { &own };
    let tool = shell_tool(&turn.tools);
    let call = commands
        .get(turn.results)
        .zip(tool)
        .map(|(command, tool)| Call {
            id: unique("call_"),
            name: text(&tool["name"]).to_owned(),
            arguments: arguments(&tool["schema"], command),
        });
    let is_stream = request["stream"] == true || path.contains("stream");
    match api {
        Api::Chat => chat(call, is_stream),
        Api::Responses => responses(call, is_stream),
        Api::Messages => messages(call, is_stream),
        Api::Gemini => gemini(call, turn.tools.is_empty(), is_stream),
    }
}

/// A call of a tool.
struct Call {
    id: String,
    name: String,
    arguments: Value,
}

fn unique(prefix: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("{prefix}{:08}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Returns the commands in a prompt.
fn commands(prompt: &str) -> Vec<String> {
    let mut commands = Vec::new();
    let mut rest = prompt;
    while let Some((_, tail)) = rest.split_once("[cmd=") {
        let Some((command, tail)) = tail.split_once(']') else {
            break;
        };
        commands.push(command.to_owned());
        rest = tail;
    }
    commands
}

fn shell_tool(tools: &[Value]) -> Option<&Value> {
    let named = |name: &&str| {
        tools
            .iter()
            .find(|tool| text(&tool["name"]).eq_ignore_ascii_case(name))
    };
    SHELL_TOOLS.iter().find_map(named)
}

/// Returns arguments with the command that fit the schema of a tool.
fn arguments(schema: &Value, command: &str) -> Value {
    let mut arguments = Map::new();
    let properties = schema["properties"].as_object();
    for (name, property) in properties.into_iter().flatten() {
        let is_array = property["type"] == "array" || property["type"] == "ARRAY";
        let value = match name.as_str() {
            "commands" => json!([command]),
            "command" | "cmd" | "script" if is_array => json!(["bash", "-lc", command]),
            "command" | "cmd" | "script" => json!(command),
            _ if !list(&schema["required"]).any(|required| required == name) => continue,
            _ => match text(&property["type"]).to_ascii_lowercase().as_str() {
                "boolean" => json!(false),
                "number" | "integer" => json!(1),
                "array" => json!([]),
                "object" => json!({}),
                _ => property["enum"]
                    .get(0)
                    .cloned()
                    .unwrap_or_else(|| json!("run a command")),
            },
        };
        arguments.insert(name.clone(), value);
    }
    Value::Object(arguments)
}

/// What a request asks for.
struct Turn {
    /// The last prompt of the user.
    prompt: String,
    /// Number of tool results after the prompt.
    results: usize,
    /// Tools with `name` and `schema`.
    tools: Vec<Value>,
}

#[derive(Clone, Copy)]
enum Api {
    Chat,
    Responses,
    Messages,
    Gemini,
}

impl Api {
    fn turn(self, request: &Value) -> Turn {
        let messages = match self {
            Self::Chat | Self::Messages => &request["messages"],
            Self::Responses => &request["input"],
            Self::Gemini => &request["contents"],
        };
        let mut turn = Turn {
            prompt: text(messages).to_owned(),
            results: 0,
            tools: self.tools(request),
        };
        for message in list(messages).rev() {
            let is_user = message["role"] == "user";
            let content = match self {
                Self::Gemini => &message["parts"],
                _ => &message["content"],
            };
            // A message may contain the results of an aborted turn, and then the next prompt.
            let mut results = self.results(message);
            let last = list(content).next_back();
            if is_user && last.is_some_and(|block| block["text"].is_string()) {
                results = 0;
            }
            turn.results += results;
            let content = content
                .as_str()
                .map_or_else(|| content.to_string(), str::to_owned);
            // Agents add messages of the user about the environment.
            let is_context = ["environment_context", "AGENTS.md", "Tool output included"]
                .iter()
                .any(|context| content.contains(context));
            if is_user && results == 0 && !is_context {
                turn.prompt = content;
                return turn;
            }
        }
        turn
    }

    /// Returns the number of tool results in a message.
    fn results(self, message: &Value) -> usize {
        match self {
            Self::Chat => usize::from(message["role"] == "tool"),
            Self::Responses => usize::from(text(&message["type"]).ends_with("call_output")),
            Self::Messages => list(&message["content"])
                .filter(|block| block["type"] == "tool_result")
                .count(),
            Self::Gemini => list(&message["parts"])
                .filter(|part| part["functionResponse"].is_object())
                .count(),
        }
    }

    fn tools(self, request: &Value) -> Vec<Value> {
        let tools = list(&request["tools"]);
        let tool = |name: &Value, schema: &Value| json!({"name": name, "schema": schema});
        match self {
            Self::Chat => tools
                .map(|one| tool(&one["function"]["name"], &one["function"]["parameters"]))
                .collect(),
            Self::Responses => tools
                .flat_map(|one| [one].into_iter().chain(list(&one["tools"])))
                .map(|one| tool(&one["name"], &one["parameters"]))
                .collect(),
            Self::Messages => tools
                .map(|one| tool(&one["name"], &one["input_schema"]))
                .collect(),
            Self::Gemini => tools
                .flat_map(|one| list(&one["functionDeclarations"]))
                .map(|one| {
                    let schema = match one["parametersJsonSchema"].is_object() {
                        true => &one["parametersJsonSchema"],
                        false => &one["parameters"],
                    };
                    tool(&one["name"], schema)
                })
                .collect(),
        }
    }
}

fn chat(call: Option<Call>, is_stream: bool) -> Reply {
    let usage = json!({"prompt_tokens": 1200, "completion_tokens": 34, "total_tokens": 1234, "prompt_tokens_details": {"cached_tokens": 1000}});
    let id = unique("chatcmpl-");
    let base = |object: &str, choices: Value| json!({"id": id, "object": object, "created": 1, "model": "scripted", "choices": choices, "usage": usage});
    let (message, reason) = match &call {
        Some(Call {
            id,
            name,
            arguments,
        }) => {
            let function = json!({"name": name, "arguments": arguments.to_string()});
            let calls = json!([{"index": 0, "id": id, "type": "function", "function": function}]);
            (
                json!({"role": "assistant", "content": ANNOUNCEMENT, "tool_calls": calls}),
                "tool_calls",
            )
        }
        None => (json!({"role": "assistant", "content": ANSWER}), "stop"),
    };
    if !is_stream {
        let choice = json!([{"index": 0, "message": message, "finish_reason": reason}]);
        return Reply::json(&base("chat.completion", choice));
    }
    let chunk = |delta: Value, reason: Value| {
        let mut chunk = base(
            "chat.completion.chunk",
            json!([{"index": 0, "delta": delta, "finish_reason": reason}]),
        );
        chunk["usage"] = Value::Null;
        chunk
    };
    Reply::events(
        &[
            chunk(message, Value::Null),
            chunk(json!({}), json!(reason)),
            base("chat.completion.chunk", json!([])),
        ],
        false,
    )
}

fn responses(call: Option<Call>, is_stream: bool) -> Reply {
    let usage = json!({"input_tokens": 1200, "input_tokens_details": {"cached_tokens": 1000}, "output_tokens": 34, "output_tokens_details": {"reasoning_tokens": 7}, "total_tokens": 1234});
    let item = match &call {
        Some(Call {
            id,
            name,
            arguments,
        }) => {
            json!({"type": "function_call", "id": unique("fc_"), "call_id": id, "name": name, "arguments": arguments.to_string(), "status": "completed"})
        }
        None => {
            let part = json!({"type": "output_text", "text": ANSWER, "annotations": []});
            json!({"type": "message", "id": unique("msg_"), "role": "assistant", "status": "completed", "content": [part]})
        }
    };
    let response = |status: &str, output: Value, usage: &Value| json!({"id": "resp_1", "object": "response", "created_at": 1, "model": "scripted", "status": status, "output": output, "usage": usage});
    let completed = response("completed", json!([item]), &usage);
    if !is_stream {
        return Reply::json(&completed);
    }
    let created = response("in_progress", json!([]), &Value::Null);
    let mut added = item.clone();
    added["status"] = "in_progress".into();
    let mut events = vec![json!({"type": "response.created", "response": created})];
    if call.is_none() {
        added["content"] = json!([]);
    }
    events.push(json!({"type": "response.output_item.added", "output_index": 0, "item": added}));
    if call.is_none() {
        let delta = json!({"type": "response.output_text.delta", "item_id": item["id"], "output_index": 0, "content_index": 0, "delta": ANSWER});
        events.push(delta);
    }
    events.push(json!({"type": "response.output_item.done", "output_index": 0, "item": item}));
    events.push(json!({"type": "response.completed", "response": completed}));
    Reply::events(&events, true)
}

fn messages(call: Option<Call>, is_stream: bool) -> Reply {
    let usage = |output: u64| json!({"input_tokens": 200, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 1000, "output_tokens": output});
    let (content, reason) = match call {
        Some(Call {
            id,
            name,
            arguments,
        }) => (
            vec![
                json!({"type": "text", "text": ANNOUNCEMENT}),
                json!({"type": "tool_use", "id": id, "name": name, "input": arguments}),
            ],
            "tool_use",
        ),
        None => (vec![json!({"type": "text", "text": ANSWER})], "end_turn"),
    };
    let message = |content: &[Value], reason: Value, output| json!({"id": unique("msg_"), "type": "message", "role": "assistant", "model": "scripted", "content": content, "stop_reason": reason, "stop_sequence": null, "usage": usage(output)});
    if !is_stream {
        return Reply::json(&message(&content, json!(reason), 34));
    }
    let start = message(&[], Value::Null, 1);
    let mut events = vec![json!({"type": "message_start", "message": start})];
    for (index, block) in content.iter().enumerate() {
        let mut start = block.clone();
        let delta = match block["type"] == "text" {
            true => {
                start["text"] = "".into();
                json!({"type": "text_delta", "text": block["text"]})
            }
            false => {
                start["input"] = json!({});
                json!({"type": "input_json_delta", "partial_json": block["input"].to_string()})
            }
        };
        events.push(json!({"type": "content_block_start", "index": index, "content_block": start}));
        events.push(json!({"type": "content_block_delta", "index": index, "delta": delta}));
        events.push(json!({"type": "content_block_stop", "index": index}));
    }
    events.push(json!({"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": null}, "usage": {"output_tokens": 34}}));
    events.push(json!({"type": "message_stop"}));
    Reply::events(&events, true)
}

fn gemini(call: Option<Call>, is_routing: bool, is_stream: bool) -> Reply {
    let usage = json!({"promptTokenCount": 1200, "candidatesTokenCount": 34, "totalTokenCount": 1241, "cachedContentTokenCount": 1000, "thoughtsTokenCount": 7});
    let parts = match call {
        Some(Call {
            name, arguments, ..
        }) => {
            json!([{"text": ANNOUNCEMENT}, {"functionCall": {"name": name, "args": arguments}, "thoughtSignature": "c2ln"}])
        }
        // Gemini CLI asks which model to use, and who speaks next.
        None if is_routing => {
            let choice = json!({"complexity_reasoning": "simple", "complexity_score": 1, "reasoning": "simple", "model_choice": "flash", "next_speaker": "user"});
            json!([{"text": choice.to_string()}])
        }
        None => json!([{"text": ANSWER}]),
    };
    let content = json!({"role": "model", "parts": parts});
    let candidate = json!({"content": content, "index": 0, "finishReason": "STOP"});
    let response = json!({"candidates": [candidate], "usageMetadata": usage, "modelVersion": "scripted", "responseId": unique("r")});
    match is_stream {
        false => Reply::json(&response),
        true => {
            let mut reply = Reply::events(&[response], false);
            reply.body = reply.body.replace("data: [DONE]\n\n", "");
            reply
        }
    }
}
