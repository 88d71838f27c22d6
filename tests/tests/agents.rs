//! Real agents with a placeholder in place of their key: they talk to a scripted model over TLS through the proxy.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use colibri_tests::pi::tools_of;
use colibri_tests::tls::{Received, Response, TlsServer};
use colibri_tests::tmux::Terminal;
use colibri_tests::{Daemon, eventually, test_directory, text};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Mount target of an agent's programs.
const TOOLS_INSIDE: &str = "/tmp/tools";
/// What pi shows if it gets a prompt too early.
const STARTING: &str = "Startup is still in progress";
/// Parts of lines with times and random words.
const UNSTABLE: &[&str] = &[STARTING, "✻", "◐", "Worked for"];
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

    fn run(&self, agent: (&str, &str), environment: &[&str], words: &[&str]) -> Output {
        let mut command = self.command(agent, "--no-input", environment, words);
        command.output().unwrap()
    }

    /// Returns the command that runs an agent with the key in a variable.
    fn command(
        &self,
        (agent, variable): (&str, &str),
        option: &str,
        environment: &[&str],
        words: &[&str],
    ) -> Command {
        let mount = format!("{}:{TOOLS_INSIDE}:ro", tools_of(agent).display());
        let workspace = self.workspace.display().to_string();
        let credential = format!("{variable}@localhost:{}", self.model.port);
        let mut command = self.daemon.command("colibri");
        command
            .args(["--no-autostart", "run", option, "--jail-path", "/"])
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
        command
    }

    /// Runs the interactive mode of an agent on a terminal, asks the model something, detaches, and attaches again. The screens
    /// are snapshots, without what differs between two runs.
    fn check_screens(
        &self,
        agent: (&str, &str),
        environment: &[&str],
        words: &[&str],
        prompt_mark: &str,
    ) {
        let command = self.command(agent, "-t", environment, words);
        let quoted: Vec<String> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| format!("'{}'", word.to_str().unwrap()))
            .collect();
        let script = self.daemon.path("tui.sh");
        fs::write(&script, format!("exec {}\n", quoted.join(" "))).unwrap();
        let terminal = Terminal::open(&self.daemon, 90, 30, &[(agent.1, &self.key)]);
        terminal.type_text(&format!("sh {}", script.display()));
        terminal.press(&["Enter"]);
        terminal.wait_until("the prompt", |screen| screen.contains(prompt_mark));
        terminal.type_text("say hello");
        terminal.wait_for_text("say hello");
        terminal.press(&["Enter"]);
        let mut pressed = Instant::now();
        eventually("the answer", || {
            let screen = terminal.screen();
            // pi accepts no prompt at first.
            if screen.contains(STARTING) && pressed.elapsed() > Duration::from_secs(1) {
                terminal.press(&["Enter"]);
                pressed = Instant::now();
            }
            screen.contains(ANSWER).then_some(())
        });
        let answered = self.settled(&terminal, prompt_mark);
        insta::assert_snapshot!(format!("{}_answered", agent.0), self.redacted(&answered));
        terminal.press(&["C-p", "C-q"]);
        terminal.wait_for_text("detached; agent");
        let id = self.daemon.agents()[0]["id"].as_str().unwrap().to_owned();
        terminal.type_text(&format!("clear; colibri attach {id}"));
        terminal.press(&["Enter"]);
        terminal.wait_until("the screen", |screen| screen.contains(ANSWER));
        let attached = self.settled(&terminal, prompt_mark);
        assert_eq!(
            self.redacted(&attached),
            self.redacted(&answered),
            "after a detach"
        );
        let cells = |screen: String| self.redacted(&screen);
        let coloured = cells(terminal.screen_with_colours());
        assert!(coloured.contains("\u{1b}["), "{coloured}");
        self.daemon.cli_ok(&["kill", &id]);
    }

    /// Returns the screen when it does not change any more.
    fn settled(&self, terminal: &Terminal, mark: &str) -> String {
        let mut last = String::new();
        let mut since = Instant::now();
        eventually("an unchanged screen", || {
            let screen = terminal.screen();
            if screen != last || !screen.contains(mark) {
                last = screen;
                since = Instant::now();
            }
            (since.elapsed() > Duration::from_secs(1)).then(|| last.clone())
        })
    }

    /// Replaces paths and versions in a screen.
    fn redacted(&self, screen: &str) -> String {
        let directory = self.daemon.directory().display().to_string();
        let mut text = String::new();
        for line in screen.replace(&directory, "DIRECTORY").lines() {
            if UNSTABLE.iter().any(|unstable| line.contains(unstable)) {
                continue;
            }
            let words = line.split(' ').map(|word| {
                let number = word.trim_start_matches(['v', '(']).trim_end_matches(')');
                let is_version = number.split('.').count() == 3
                    && number.split('.').all(|part| part.parse::<u32>().is_ok());
                match is_version {
                    true => word.replace(number, "VERSION"),
                    false => word.to_owned(),
                }
            });
            text += words.collect::<Vec<_>>().join(" ").trim_end();
            text.push('\n');
        }
        text.trim_end().replace("\n\n\n", "\n\n")
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

/// Writes settings of pi for the model, and returns its directory as a variable.
fn prepare_pi(setup: &Setup) -> String {
    let settings = setup.workspace.join(".pi");
    fs::create_dir(&settings).unwrap();
    let models = json!({"providers": {"scripted": {
        "baseUrl": format!("{}/v1", setup.url()),
        "api": "openai-completions",
        "apiKey": "$MODEL_KEY",
        "models": [{"id": "m", "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0}}],
    }}});
    fs::write(settings.join("models.json"), models.to_string()).unwrap();
    format!("PI_CODING_AGENT_DIR={}", settings.display())
}

#[test]
fn pi_uses_a_key_that_it_does_not_have() {
    let setup = Setup::new();
    let directory = prepare_pi(&setup);
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

/// Writes settings of codex for the model, and returns its directory as a variable.
fn prepare_codex(setup: &Setup) -> String {
    let home = setup.workspace.join(".codex");
    fs::create_dir(&home).unwrap();
    let config = format!(
        "model = \"m\"\nmodel_provider = \"scripted\"\n[model_providers.scripted]\nname = \"scripted\"\n\
         base_url = \"{}/v1\"\nenv_key = \"OPENAI_API_KEY\"\nwire_api = \"responses\"\n",
        setup.url()
    );
    fs::write(home.join("config.toml"), config).unwrap();
    format!("CODEX_HOME={}", home.display())
}

#[test]
fn codex_uses_a_key_that_it_does_not_have() {
    let setup = Setup::new();
    let directory = prepare_codex(&setup);
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

#[test]
fn pi_shows_its_screen_again_after_a_detach() {
    let setup = Setup::new();
    let directory = prepare_pi(&setup);
    let words = [
        "--provider",
        "scripted",
        "--model",
        "m",
        "--no-session",
        "-na",
    ];
    let environment = [directory.as_str(), "PI_OFFLINE=1"];
    setup.check_screens(("pi", "MODEL_KEY"), &environment, &words, "/128k");
}

#[test]
fn claude_shows_its_screen_again_after_a_detach() {
    let setup = Setup::new();
    let workspace = setup.workspace.display().to_string();
    let state = json!({
        "hasCompletedOnboarding": true,
        "projects": {workspace: {"hasTrustDialogAccepted": true}},
    });
    fs::write(setup.workspace.join(".claude.json"), state.to_string()).unwrap();
    let base = format!("ANTHROPIC_BASE_URL={}", setup.url());
    let environment = [
        base.as_str(),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1",
        "DISABLE_AUTOUPDATER=1",
    ];
    setup.check_screens(("claude", "ANTHROPIC_AUTH_TOKEN"), &environment, &[], "❯");
}

#[test]
fn codex_shows_its_screen_again_after_a_detach() {
    let setup = Setup::new();
    let directory = prepare_codex(&setup);
    let words = ["--no-daemon", "--dangerously-bypass-approvals-and-sandbox"];
    setup.check_screens(("codex", "OPENAI_API_KEY"), &[&directory], &words, "›");
}
