//! pi in a sandbox of Colibri: it can write only in its workspace, its activity is shown, and it accepts prompts. pi is
//! unchanged; only its model is scripted.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods
)]

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::{Arc, Mutex};

use colibri_tests::model::Answer::{Fail, Stall, Text, Tools};
use colibri_tests::model::Model;
use colibri_tests::pi::{Pi, bin_directory};
use colibri_tests::{Daemon, eventually, read, tested_commands, text, wait_until};
use serde_json::{Value, json};

#[test]
fn json_mode_edits_only_the_workspace() {
    let outside = format!("/var/tmp/colibri-outside-{}", std::process::id());
    let pi = Pi::new([
        Tools(vec![(
            "write",
            json!({"path": "created.txt", "content": "created\n"}),
        )]),
        Tools(vec![("read", json!({"path": "existing.txt"}))]),
        Tools(vec![(
            "edit",
            json!({"path": "existing.txt", "edits": [{"oldText": "an old", "newText": "a new"}]}),
        )]),
        Tools(vec![(
            "write",
            json!({"path": outside, "content": "out\n"}),
        )]),
        Tools(vec![(
            "bash",
            json!({"command": format!("exec 2>&1; echo out > {outside}; cat existing.txt; touch ../outside")}),
        )]),
        Text(&["All ", "done."]),
    ]);
    fs::write(pi.file("existing.txt"), "an old word\n").unwrap();
    let id = pi.spawn(&["--no-input"], &["--mode", "json", "change the files"]);
    pi.daemon.cli_ok(&["wait", &id]);
    assert_eq!(
        fs::read_to_string(pi.file("created.txt")).unwrap(),
        "created\n"
    );
    assert_eq!(
        fs::read_to_string(pi.file("existing.txt")).unwrap(),
        "a new word\n"
    );
    assert!(!fs::exists(&outside).unwrap() && !pi.daemon.path("outside").exists());

    // The tool results that the model has received, and the view.
    let requests = pi.model.requests();
    assert_eq!(requests.len(), 6, "{requests:#?}");
    let results: Vec<String> = requests[5]["messages"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|message| message["role"] == "tool")
        .map(|message| message["content"].to_string())
        .collect();
    // The directory of the host is private to the sandbox.
    assert!(results[3].contains("Successfully wrote"), "{results:#?}");
    assert!(results[4].contains("a new word"), "{results:#?}");
    let agent = pi.daemon.agent(&id);
    let view = &agent["view"];
    assert_eq!(
        (&agent["state"], &view["turns"], &view["malformed_lines"]),
        (&json!("done"), &json!(6), &json!(0)),
        "{agent:#}"
    );
    assert_eq!(
        (&view["input_tokens"], &view["output_tokens"]),
        (&json!(600), &json!(120))
    );
    let cost = view["cost_usd"].as_f64().unwrap();
    assert!((cost - 0.0036).abs() < 1e-9, "{cost}");

    // The formatted output.
    let attached = pi.daemon.cli(&["attach", &id]);
    assert_eq!(attached.status.code(), Some(0));
    let shown = text(&attached.stdout).replace(&outside, "OUTSIDE");
    insta::assert_snapshot!(shown);
    let raw = pi.daemon.cli(&["attach", "--raw", &id]);
    assert_eq!(raw.stdout, pi.daemon.stdout(&id));
}

#[test]
fn allow_option_restricts_pi_to_its_model_provider() {
    let other_server = Model::start([]);
    let address = other_server.address().to_string().replace(':', "/");
    let connect = format!("(exec 3<>/dev/tcp/{address}) 2>/dev/null && echo open || echo closed");
    for (is_filtered, expected) in [(true, "closed"), (false, "open")] {
        let pi = Pi::new([
            Tools(vec![("bash", json!({"command": connect}))]),
            Text(&["Done."]),
        ]);
        let allowed = pi.model.address().to_string();
        let options: &[&str] = match is_filtered {
            true => &["--no-input", "--allow", &allowed],
            false => &["--no-input"],
        };
        let id = pi.spawn(options, &["--mode", "json", "try"]);
        pi.daemon.cli_ok(&["wait", &id]);
        let shown = pi.daemon.cli_ok(&["attach", &id]);
        let result = format!("  | {expected}\n  Done.\n- idle after 2 turns");
        assert!(shown.contains(&result), "{shown}");
    }
}

#[test]
fn status_shows_tools_turns_waits_and_errors() {
    let wait = "until [ -e go ]; do sleep 0.02; done; echo went";
    let pi = Pi::new([
        Tools(vec![("bash", json!({"command": wait}))]),
        Text(&["Went."]),
    ]);
    let id = pi.spawn_rpc();
    let prompt = |prompt: &str| pi.daemon.cli_ok(&["prompt", &id, prompt]);
    prompt("wait for the file");
    let agent = pi.wait_until(&id, "working", |view| view["current_tool"] == "bash");
    assert_eq!(agent["view"]["turns"], 0);
    fs::write(pi.file("go"), "").unwrap();
    let agent = pi.wait_until(&id, "idle", |view| view["turns"] == 2);
    assert_eq!(agent["view"]["current_tool"], Value::Null);
    assert_eq!(agent["view"]["last_error"], Value::Null);

    // The model does not answer: the state is `working`, and the status shows the reason of the wait.
    pi.model.push_answers([Stall]);
    prompt("ask the slow one");
    wait_until("the model was asked", || pi.model.stalled() == 1);
    pi.wait_until(&id, "working", |view| view["activity"] == "waiting");
    let status = pi.daemon.cli_ok(&["status", &id]);
    assert!(status.contains("(waiting for its model)"), "{status}");
    pi.model.release();
    pi.wait_until(&id, "idle", |view| view["turns"] == 3);

    // A transient model error, and a permanent one.
    pi.model
        .push_answers([Fail(500, "overloaded for a moment"), Text(&["Again."])]);
    prompt("try it");
    let agent = pi.wait_until(&id, "idle", |view| view["turns"] == 5);
    let error = agent["view"]["last_error"].as_str().unwrap();
    assert!(error.contains("overloaded for a moment"), "{error}");
    pi.model.push_answers([Fail(400, "no such luck")]);
    prompt("try it once more");
    let agent = pi.wait_until(&id, "idle", |view| view["turns"] == 6);
    let error = agent["view"]["last_error"].as_str().unwrap();
    assert!(error.contains("no such luck"), "{error}");
    let status = pi.daemon.cli_ok(&["status", &id]);
    assert!(status.contains("no such luck"), "{status}");

    // pi ends with code 0 when its stdin is closed, although its last work failed.
    pi.daemon.cli_ok(&["send", "--close", &id]);
    pi.daemon.cli_ok(&["wait", &id]);
    assert_eq!(pi.daemon.agent(&id)["state"], "error");
}

#[test]
fn prompt_steer_and_abort_reach_pi() {
    let pi = Pi::new([Stall]);
    let id = pi.spawn_rpc();
    pi.daemon.cli_ok(&["prompt", &id, "first"]);
    wait_until("the model was asked", || pi.model.stalled() == 1);

    // A refusal by pi is an error with pi's message and a hint.
    let refused = pi.daemon.cli(&["prompt", &id, "second"]);
    let message = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{message}");
    assert!(
        message.contains("already processing") && message.contains("--steer or --follow-up"),
        "{message}"
    );
    pi.daemon.cli_ok(&["prompt", "--follow-up", &id, "third"]);
    pi.daemon.cli_ok(&[
        "prompt",
        "--steer",
        &id,
        "-- with \"quotes\"\nand \u{2028} lines",
    ]);
    pi.wait_until(&id, "working", |view| view["queued"] == 2);
    pi.model
        .push_answers([Text(&["Steered."]), Text(&["Followed."])]);
    pi.model.release();
    pi.wait_until(&id, "idle", |view| view["turns"] == 3);
    let prompts = |request: &Value| -> Vec<String> {
        let messages = request["messages"].as_array().unwrap();
        let users = messages.iter().filter(|message| message["role"] == "user");
        users
            .map(|message| match &message["content"] {
                Value::String(text) => text.clone(),
                blocks => blocks[0]["text"].as_str().unwrap().to_owned(),
            })
            .collect()
    };
    let requests = pi.model.requests();
    assert_eq!(
        prompts(&requests[2]),
        ["first", "-- with \"quotes\"\nand \u{2028} lines", "third"]
    );

    // Abort cancels the current model request or tool; pi keeps running.
    pi.model.push_answers([
        Stall,
        Tools(vec![("bash", json!({"command": "sleep 1000"}))]),
    ]);
    pi.daemon.cli_ok(&["prompt", &id, "stall"]);
    wait_until("the model was asked", || pi.model.stalled() == 1);
    pi.daemon.cli_ok(&["abort", &id]);
    pi.wait_until(&id, "idle", |_| true);
    pi.daemon.cli_ok(&["prompt", &id, "sleep"]);
    pi.wait_until(&id, "working", |view| view["current_tool"] == "bash");
    pi.daemon.cli_ok(&["abort", &id]);
    pi.wait_until(&id, "idle", |view| view["current_tool"] == Value::Null);
    pi.model.push_answers([Text(&["Still here."])]);
    pi.daemon.cli_ok(&["prompt", &id, "are you there?"]);
    wait_until("the agent answers", || {
        text(&pi.daemon.stdout(&id)).contains("Still here.")
    });
}

/// A running `colibri attach`.
struct Attached {
    child: Child,
    stdin: ChildStdin,
    /// The output until now.
    output: Arc<Mutex<Vec<u8>>>,
    /// Number of bytes of `output` that the test has read.
    position: usize,
}

impl Attached {
    fn start(pi: &Pi, id: &str) -> Self {
        let mut child = pi
            .daemon
            .command("colibri")
            .args(["attach", id])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = Arc::<Mutex<Vec<u8>>>::default();
        let (mut stdout, shared) = (child.stdout.take().unwrap(), output.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut buffer) {
                shared.lock().unwrap().extend(&buffer[..count]);
            }
        });
        Self {
            stdin: child.stdin.take().unwrap(),
            output,
            position: 0,
            child,
        }
    }

    fn send_line(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").unwrap();
    }

    /// Waits for a complete line with this beginning, and returns the output up to and including it.
    fn read_until(&mut self, beginning: &str) -> String {
        let position = self.position;
        let read = eventually(&format!("a line begins with {beginning:?}"), || {
            let shown = text(&self.output.lock().unwrap()[position..]);
            let mut end = 0;
            for line in shown.split_inclusive('\n') {
                end += line.len();
                if line.starts_with(beginning) && line.ends_with('\n') {
                    return Some(shown[..end].to_owned());
                }
            }
            None
        });
        self.position += read.len();
        read
    }

    /// Closes stdin, waits for the end, and returns the exit code and stderr.
    fn close(self) -> (Option<i32>, String) {
        drop(self.stdin);
        let output = self.child.wait_with_output().unwrap();
        (output.status.code(), text(&output.stderr))
    }
}

#[test]
fn attach_sends_prompts_and_answers_and_reattaches() {
    let pi = Pi::new([
        Tools(vec![(
            "bash",
            json!({"command": "echo one > one; cat one"}),
        )]),
        Text(&["It says ", "one."]),
    ]);
    // An extension of pi that asks for a permission before each command.
    let extension = r#"export default function (pi) {
        pi.on("tool_call", async (event, ctx) => {
            const allowed = await ctx.ui.confirm("Run this?", String(event.input.command));
            if (!allowed) return { block: true, reason: "the user refused" };
        });
    }"#;
    fs::write(pi.file("ask.ts"), extension).unwrap();
    let id = pi.spawn(&[], &["--mode", "rpc", "-e", "ask.ts"]);

    let mut attached = Attached::start(&pi, &id);
    attached.send_line("what does it say?");
    attached.read_until("? ");
    pi.wait_until(&id, "blocked", |view| view["current_tool"] == "bash");
    attached.send_line("perhaps");
    attached.send_line("y");
    let mut shown = attached.read_until("- idle");
    assert_eq!(
        shown,
        "* bash ended:\n  | one\n  It says one.\n- idle after 2 turns, 200+40 tokens, $0.0012\n"
    );

    // Input during a turn steers it.
    pi.model.push_answers([Stall, Text(&["Turned left."])]);
    attached.send_line("go");
    wait_until("the model was asked", || pi.model.stalled() == 1);
    attached.send_line("left");
    attached.read_until("- 1 prompt queued");
    pi.model.release();
    shown = attached.read_until("- idle");
    assert!(
        shown.contains("  Here at last.\n> left\n  Turned left.\n"),
        "{shown}"
    );

    // Ctrl-C detaches.
    let pid = rustix::process::Pid::from_child(&attached.child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let (code, message) = attached.close();
    assert_eq!(code, Some(0));
    assert!(
        message.contains("invalid answer \"perhaps\"")
            && message.contains(&format!("colibri attach {id}")),
        "{message}"
    );
    assert_eq!(pi.daemon.agent(&id)["state"], "idle");

    // Attaching again shows the earlier output.
    let mut attached = Attached::start(&pi, &id);
    shown = attached.read_until("- idle after 2 turns, 200+40");
    assert!(shown.starts_with("> what does it say?\n* bash: echo one > one; cat one\n? Run this? echo one > one; cat one (y or n)\n"), "{shown}");
    pi.daemon.cli_ok(&["kill", &id]);
    let code = pi.daemon.wait(&id);
    assert_eq!(attached.close().0, code);
}

#[test]
fn commands_of_the_agents_page_work() {
    let script = tested_commands(&read("docs/agents.md"));
    assert!(script.lines().count() > 15, "{script}");
    let model = Model::start_with_fallback([], |request| {
        match request.to_string().contains("what does this project do?") {
            true => Text(&["It fixes tests."]),
            false => Stall,
        }
    });
    let daemon = Daemon::prepare();
    fs::remove_file(daemon.path(".config/colibri/colibri.toml")).unwrap();
    let bin = bin_directory(daemon.directory());
    let tools = bin.parent().and_then(Path::parent).unwrap();
    // The model is local, and pi is not installed in /usr.
    let script = script
        .replace("api.anthropic.com:443", &model.address().to_string())
        .replace(
            "--workspace \"$PWD\" --allow",
            &format!(
                "--mount {}:ro --workspace \"$PWD\" --allow",
                tools.display()
            ),
        );
    let settings = daemon.path(".pi/agent");
    fs::create_dir_all(&settings).unwrap();
    fs::create_dir(daemon.path("project")).unwrap();
    fs::write(settings.join("models.json"), model.models_json()).unwrap();
    let default_model = json!({"defaultProvider": "scripted", "defaultModel": "m"});
    fs::write(settings.join("settings.json"), default_model.to_string()).unwrap();
    daemon.run_documented(
        &format!("export PI_OFFLINE=1\n{script}\ncolibri shutdown"),
        &[&bin],
        &[
            "> make the tests pass\n",
            "- aborted\n",
            "> what does this project do?\n  It fixes tests.\n- idle after 1 turn",
            "  got hello\n",
        ],
    );
}
