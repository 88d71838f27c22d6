//! Real agents with a placeholder in place of their key: they talk to a scripted model over TLS through the proxy.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::PathBuf;
use std::process::Output;

use colibri_tests::pi::tools_of;
use colibri_tests::tls::{Received, Response, TlsServer};
use colibri_tests::{Daemon, test_directory, text};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Mount target of an agent's programs.
const TOOLS_INSIDE: &str = "/tmp/tools";
/// What the model answers.
const ANSWER: &str = "Hello from the scripted model.";

/// The request by which an agent uses its key.
struct Expected {
    path: &'static str,
    header: &'static str,
    /// What precedes the key in the header.
    prefix: &'static str,
}

/// A daemon, a model with TLS, and a workspace.
struct Setup {
    daemon: Daemon,
    model: TlsServer,
    workspace: PathBuf,
    key: String,
    _directory: TempDir,
}

impl Setup {
    fn new() -> Self {
        let directory = test_directory();
        let model = TlsServer::start(directory.path(), answer);
        let mut daemon = Daemon::prepare();
        let mut command = daemon.command("colibri-daemon");
        command.env("SSL_CERT_FILE", &model.authority);
        daemon.launch_command(command);
        let workspace = daemon.path("workspace");
        fs::create_dir(&workspace).unwrap();
        Self {
            daemon,
            model,
            workspace,
            key: format!("sk-real-key-4f7b-{}", std::process::id()),
            _directory: directory,
        }
    }

    fn url(&self) -> String {
        format!("https://localhost:{}", self.model.port)
    }

    /// Runs an agent twice with the key in a variable, environment variables, and arguments, and checks both runs: with
    /// connections to the port of the model in the sandbox, and with tunnels of the proxy.
    fn run_and_check(
        &self,
        (agent, variable): (&str, &str),
        environment: &[&str],
        words: &[&str],
        expected: &Expected,
    ) {
        let tunnels = ["NO_PROXY=", "no_proxy="];
        for more in [&[][..], &tunnels] {
            let before = self.model.requests().len();
            let environment = [environment, more].concat();
            let output = self.run((agent, variable), &environment, words);
            self.check(&output, before, expected);
        }
    }

    fn run(&self, (agent, variable): (&str, &str), environment: &[&str], words: &[&str]) -> Output {
        let mount = format!("{}:{TOOLS_INSIDE}:ro", tools_of(agent).display());
        let workspace = self.workspace.display().to_string();
        let credential = format!("{variable}@localhost:{}", self.model.port);
        let mut command = self.daemon.command("colibri");
        command
            .args(["--no-autostart", "run", "--no-input", "--jail-path", "/"])
            .args(["--workspace", &workspace, "--mount", &mount])
            .args(["--unprotect", &format!("{workspace}/.{agent}")])
            .args(["--credential", &credential])
            .args([
                "--env",
                &format!("PATH={TOOLS_INSIDE}/node_modules/.bin:/usr/bin:/bin"),
            ])
            .args(["--env", &format!("HOME={workspace}")]);
        for variable in environment {
            command.args(["--env", variable]);
        }
        command
            .env(variable, &self.key)
            .arg("--")
            .arg(agent)
            .args(words);
        command.output().unwrap()
    }

    /// Checks that the agent showed the answer, and that the model got the key, which the agent never had. Ignores the first
    /// requests of the model.
    fn check(&self, output: &Output, before: usize, expected: &Expected) {
        let Expected {
            path,
            header,
            prefix,
        } = expected;
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        let requests = self.model.requests().split_off(before);
        let request = requests
            .iter()
            .find(|request| request.path().starts_with(path));
        let heads: Vec<&str> = requests
            .iter()
            .map(|request| request.head.as_str())
            .collect();
        let request =
            request.unwrap_or_else(|| panic!("no request for {path}: {heads:?}\n{out}\n{err}"));
        assert_eq!(
            request.header(header),
            Some(format!("{prefix}{}", self.key).as_str()),
            "{heads:?}"
        );
        assert!(out.contains(ANSWER), "{out}\n{err}\n{heads:?}");
        assert!(
            !out.contains(&self.key) && !err.contains(&self.key),
            "{out}\n{err}"
        );
        for entry in walk(&self.workspace) {
            let content = fs::read(&entry).unwrap_or_default();
            assert!(!text(&content).contains(&self.key), "{}", entry.display());
        }
    }
}

/// Returns the files of a directory.
fn walk(directory: &std::path::Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => files.extend(walk(&entry.path())),
            false => files.push(entry.path()),
        }
    }
    files
}

/// Answers as the APIs of OpenAI and Anthropic do.
fn answer(received: &Received) -> Response {
    let path = received.path().split('?').next().unwrap_or_default();
    if path.ends_with("/chat/completions") {
        return stream(&chat(), false);
    }
    if path.ends_with("/responses") {
        return stream(&responses(), true);
    }
    if path.ends_with("/messages") {
        let request: Value = serde_json::from_slice(&received.body).unwrap_or_default();
        return match request["stream"] == true {
            true => stream(&messages(), true),
            false => json_response(&message()),
        };
    }
    if path.ends_with("/models") {
        return json_response(&json!({"object": "list", "data": [], "has_more": false}));
    }
    json_response(&json!({}))
}

fn json_response(value: &Value) -> Response {
    Response {
        content_type: "application/json",
        body: value.to_string(),
    }
}

/// Returns server-sent events, with their types as names if `named`.
fn stream(events: &[Value], named: bool) -> Response {
    let mut body = String::new();
    for event in events {
        if named {
            body += &format!("event: {}\n", event["type"].as_str().unwrap());
        }
        body += &format!("data: {event}\n\n");
    }
    if !named {
        body += "data: [DONE]\n\n";
    }
    Response {
        content_type: "text/event-stream",
        body,
    }
}

fn chat() -> Vec<Value> {
    let chunk = |delta: Value, finish_reason: Value| {
        json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}})
    };
    vec![
        chunk(json!({"role": "assistant", "content": ANSWER}), Value::Null),
        chunk(json!({}), json!("stop")),
    ]
}

fn responses() -> Vec<Value> {
    let part = json!({"type": "output_text", "text": ANSWER, "annotations": []});
    let item = json!({"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]});
    let response = |status: &str, output: Value| {
        json!({"id": "resp_1", "object": "response", "created_at": 1, "model": "m", "status": status, "output": output,
            "usage": {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2, "input_tokens_details": {"cached_tokens": 0},
                "output_tokens_details": {"reasoning_tokens": 0}}})
    };
    vec![
        json!({"type": "response.created", "response": response("in_progress", json!([]))}),
        json!({"type": "response.output_item.added", "output_index": 0,
            "item": {"type": "message", "id": "msg_1", "role": "assistant", "status": "in_progress", "content": []}}),
        json!({"type": "response.output_text.delta", "item_id": "msg_1", "output_index": 0, "content_index": 0, "delta": ANSWER}),
        json!({"type": "response.output_item.done", "output_index": 0, "item": item}),
        json!({"type": "response.completed", "response": response("completed", json!([item]))}),
    ]
}

fn message() -> Value {
    json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn", "stop_sequence": null,
        "content": [{"type": "text", "text": ANSWER}], "usage": {"input_tokens": 1, "output_tokens": 1}})
}

fn messages() -> Vec<Value> {
    let mut start = message();
    start["content"] = json!([]);
    start["stop_reason"] = Value::Null;
    vec![
        json!({"type": "message_start", "message": start}),
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": ANSWER}}),
        json!({"type": "content_block_stop", "index": 0}),
        json!({"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": null}, "usage": {"output_tokens": 1}}),
        json!({"type": "message_stop"}),
    ]
}

#[test]
fn pi_uses_a_key_that_it_does_not_have() {
    let setup = Setup::new();
    let settings = setup.workspace.join(".pi");
    fs::create_dir(&settings).unwrap();
    let models = json!({"providers": {"scripted": {
        "baseUrl": format!("{}/v1", setup.url()),
        "api": "openai-completions",
        "apiKey": "$MODEL_KEY",
        "models": [{"id": "m", "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0}}],
    }}});
    fs::write(settings.join("models.json"), models.to_string()).unwrap();
    let directory = format!("PI_CODING_AGENT_DIR={}", settings.display());
    let words = [
        "--provider",
        "scripted",
        "--model",
        "m",
        "--no-session",
        "-p",
        "say hello",
    ];
    let expected = Expected {
        path: "/v1/chat/completions",
        header: "authorization",
        prefix: "Bearer ",
    };
    setup.run_and_check(
        ("pi", "MODEL_KEY"),
        &[&directory, "PI_OFFLINE=1"],
        &words,
        &expected,
    );
}

#[test]
fn claude_uses_a_key_that_it_does_not_have() {
    let setup = Setup::new();
    let base = format!("ANTHROPIC_BASE_URL={}", setup.url());
    let environment = [
        base.as_str(),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1",
        "DISABLE_AUTOUPDATER=1",
    ];
    let words = [
        "-p",
        "say hello",
        "--output-format",
        "stream-json",
        "--verbose",
    ];
    let expected = Expected {
        path: "/v1/messages",
        header: "x-api-key",
        prefix: "",
    };
    setup.run_and_check(
        ("claude", "ANTHROPIC_API_KEY"),
        &environment,
        &words,
        &expected,
    );
}

#[test]
fn codex_uses_a_key_that_it_does_not_have() {
    let setup = Setup::new();
    let home = setup.workspace.join(".codex");
    fs::create_dir(&home).unwrap();
    let config = format!(
        "model = \"m\"\nmodel_provider = \"scripted\"\n[model_providers.scripted]\nname = \"scripted\"\n\
         base_url = \"{}/v1\"\nenv_key = \"OPENAI_API_KEY\"\nwire_api = \"responses\"\n",
        setup.url()
    );
    fs::write(home.join("config.toml"), config).unwrap();
    let directory = format!("CODEX_HOME={}", home.display());
    // The sandbox of Colibri confines it.
    let words = [
        "exec",
        "--json",
        "--skip-git-repo-check",
        "--dangerously-bypass-approvals-and-sandbox",
        "say hello",
    ];
    let expected = Expected {
        path: "/v1/responses",
        header: "authorization",
        prefix: "Bearer ",
    };
    setup.run_and_check(
        ("codex", "OPENAI_API_KEY"),
        &[&directory],
        &words,
        &expected,
    );
}
