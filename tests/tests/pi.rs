//! pi, unchanged and confined by Colibri: it works only in its workspace, its activity is visible, and it accepts
//! prompts. Only its model is scripted.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods
)]

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::{Arc, Mutex};

use colibri_tests::model::Answer::{Fail, Stall, Text, Tools};
use colibri_tests::model::Model;
use colibri_tests::pi::{Pi, bin};
use colibri_tests::{Daemon, eventually, read, text};
use serde_json::{Value, json};

#[test]
fn json_mode_edits_only_the_workspace() {
    let outside = format!("/var/tmp/colibri-outside-{}", std::process::id());
    let pi = Pi::new([
        Tools(vec![(
            "write",
            json!({"path": "made.txt", "content": "made\n"}),
        )]),
        Tools(vec![("read", json!({"path": "given.txt"}))]),
        Tools(vec![(
            "edit",
            json!({"path": "given.txt", "edits": [{"oldText": "an old", "newText": "a new"}]}),
        )]),
        Tools(vec![(
            "write",
            json!({"path": outside, "content": "out\n"}),
        )]),
        Tools(vec![(
            "bash",
            json!({"command": format!("exec 2>&1; echo out > {outside}; cat given.txt; touch ../beside")}),
        )]),
        Text(&["All ", "done."]),
    ]);
    fs::write(pi.file("given.txt"), "an old word\n").unwrap();
    let id = pi.spawn(&["--no-input"], &["--mode", "json", "change the files"]);
    pi.daemon.ok(&["wait", &id]);
    assert_eq!(fs::read_to_string(pi.file("made.txt")).unwrap(), "made\n");
    assert_eq!(
        fs::read_to_string(pi.file("given.txt")).unwrap(),
        "a new word\n"
    );
    assert!(!fs::exists(&outside).unwrap() && !pi.daemon.path("beside").exists());

    // The tool results that the model receives, and the daemon's view.
    let requests = pi.model.requests();
    assert_eq!(requests.len(), 6, "{requests:#?}");
    let results: Vec<String> = requests[5]["messages"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|message| message["role"] == "tool")
        .map(|message| message["content"].to_string())
        .collect();
    assert!(results[3].contains("read-only file system"), "{results:#?}");
    assert!(
        results[4].matches("Read-only file system").count() == 2
            && results[4].contains("a new word"),
        "{results:#?}"
    );
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
fn allow_reaches_only_the_model_provider() {
    // Another reachable server on this host.
    let other = Model::start([]);
    let address = other.address().to_string().replace(':', "/");
    let connects = format!("(exec 3<>/dev/tcp/{address}) 2>/dev/null && echo open || echo closed");
    for (filtered, expected) in [(true, "closed"), (false, "open")] {
        let pi = Pi::new([
            Tools(vec![("bash", json!({"command": connects}))]),
            Text(&["I see."]),
        ]);
        let allowed = pi.model.address().to_string();
        let options: &[&str] = match filtered {
            true => &["--no-input", "--allow", &allowed],
            false => &["--no-input"],
        };
        let id = pi.spawn(options, &["--mode", "json", "try"]);
        pi.daemon.ok(&["wait", &id]);
        let shown = pi.daemon.ok(&["attach", &id]);
        let result = format!("  | {expected}\n  I see.\n- idle after 2 turns");
        assert!(shown.contains(&result), "{shown}");
    }
}

#[test]
fn status_and_events_show_tools_and_turns() {
    let waits = "until [ -e go ]; do sleep 0.02; done; echo went";
    let pi = Pi::new([
        Tools(vec![("bash", json!({"command": waits}))]),
        Text(&["Went."]),
    ]);
    let id = pi.rpc();
    let prompt = |prompt: &str| pi.daemon.ok(&["prompt", &id, prompt]);
    prompt("wait for the file");
    let agent = pi.until(&id, "working", |view| view["current_tool"] == "bash");
    assert_eq!(agent["view"]["turns"], 0);
    fs::write(pi.file("go"), "").unwrap();
    let agent = pi.until(&id, "idle", |view| view["turns"] == 2);
    assert_eq!(agent["view"]["current_tool"], Value::Null);
    assert_eq!(agent["view"]["last_error"], Value::Null);

    // A model that does not answer: the state and the reason of the wait are shown.
    pi.model.then([Stall]);
    prompt("ask the slow one");
    eventually("the model was asked", || {
        (pi.model.stalled() == 1).then_some(())
    });
    pi.until(&id, "working", |view| view["activity"] == "waiting");
    let status = pi.daemon.ok(&["status", &id]);
    assert!(status.contains("(waiting for its model)"), "{status}");
    pi.model.release();
    pi.until(&id, "idle", |view| view["turns"] == 3);

    // A transient model error, and a permanent one.
    pi.model
        .then([Fail(500, "overloaded for a moment"), Text(&["Again."])]);
    prompt("try it");
    let agent = pi.until(&id, "idle", |view| view["turns"] == 5);
    let error = agent["view"]["last_error"].as_str().unwrap();
    assert!(error.contains("overloaded for a moment"), "{error}");
    pi.model.then([Fail(400, "no such luck")]);
    prompt("try it once more");
    let agent = pi.until(&id, "idle", |view| view["turns"] == 6);
    let error = agent["view"]["last_error"].as_str().unwrap();
    assert!(error.contains("no such luck"), "{error}");
    let status = pi.daemon.ok(&["status", &id]);
    assert!(status.contains("no such luck"), "{status}");

    // pi ends when its stdin is closed.
    pi.daemon.ok(&["send", "--close", &id]);
    pi.daemon.ok(&["wait", &id]);
    assert_eq!(pi.daemon.agent(&id)["state"], "done");
}

#[test]
fn prompt_steer_and_abort_reach_pi() {
    let pi = Pi::new([Stall]);
    let id = pi.rpc();
    pi.daemon.ok(&["prompt", &id, "first"]);
    eventually("the model was asked", || {
        (pi.model.stalled() == 1).then_some(())
    });

    // A refusal by pi is an error with pi's message and a hint.
    let refused = pi.daemon.cli(&["prompt", &id, "second"]);
    let message = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{message}");
    assert!(
        message.contains("already processing") && message.contains("--steer or --follow-up"),
        "{message}"
    );
    pi.daemon.ok(&["prompt", "--follow-up", &id, "third"]);
    pi.daemon.ok(&[
        "prompt",
        "--steer",
        &id,
        "-- with \"quotes\"\nand \u{2028} lines",
    ]);
    pi.until(&id, "working", |view| view["queued"] == 2);
    pi.model.then([Text(&["Steered."]), Text(&["Followed."])]);
    pi.model.release();
    pi.until(&id, "idle", |view| view["turns"] == 3);
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
    pi.model.then([
        Stall,
        Tools(vec![("bash", json!({"command": "sleep 1000"}))]),
    ]);
    pi.daemon.ok(&["prompt", &id, "stall"]);
    eventually("the model was asked", || {
        (pi.model.stalled() == 1).then_some(())
    });
    pi.daemon.ok(&["abort", &id]);
    pi.until(&id, "idle", |_| true);
    pi.daemon.ok(&["prompt", &id, "sleep"]);
    pi.until(&id, "working", |view| view["current_tool"] == "bash");
    pi.daemon.ok(&["abort", &id]);
    pi.until(&id, "idle", |view| view["current_tool"] == Value::Null);
    pi.model.then([Text(&["Still here."])]);
    pi.daemon.ok(&["prompt", &id, "are you there?"]);
    eventually("it answers", || {
        text(&pi.daemon.stdout(&id))
            .contains("Still here.")
            .then_some(())
    });
}

/// A user's `colibri attach`.
struct Attached {
    child: Child,
    typed: ChildStdin,
    shown: Arc<Mutex<Vec<u8>>>,
    /// Number of bytes that were read from `shown`.
    position: usize,
}

impl Attached {
    fn to(pi: &Pi, id: &str) -> Self {
        let mut child = pi
            .daemon
            .command("colibri")
            .args(["attach", id])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let shown = Arc::<Mutex<Vec<u8>>>::default();
        let (mut stdout, screen) = (child.stdout.take().unwrap(), shown.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut buffer) {
                screen.lock().unwrap().extend(&buffer[..count]);
            }
        });
        Self {
            typed: child.stdin.take().unwrap(),
            shown,
            position: 0,
            child,
        }
    }

    fn types(&mut self, line: &str) {
        writeln!(self.typed, "{line}").unwrap();
    }

    /// Waits for a complete line with this beginning, and returns everything up to it.
    fn reads(&mut self, beginning: &str) -> String {
        let position = self.position;
        let read = eventually(&format!("a line begins with {beginning:?}"), || {
            let shown = text(&self.shown.lock().unwrap()[position..]);
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

    fn ends(self) -> (Option<i32>, String) {
        drop(self.typed);
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
    // An extension of pi that asks before each command.
    let asks = r#"export default function (pi) {
        pi.on("tool_call", async (event, ctx) => {
            const said = await ctx.ui.confirm("Run this?", String(event.input.command));
            if (!said) return { block: true, reason: "the user refused" };
        });
    }"#;
    fs::write(pi.file("asks.ts"), asks).unwrap();
    let id = pi.spawn(&[], &["--mode", "rpc", "-e", "asks.ts"]);

    let mut attached = Attached::to(&pi, &id);
    attached.types("what does it say?");
    attached.reads("? ");
    pi.until(&id, "blocked", |view| view["current_tool"] == "bash");
    attached.types("perhaps");
    attached.types("y");
    let mut shown = attached.reads("- idle");
    assert_eq!(
        shown,
        "* bash ended:\n  | one\n  It says one.\n- idle after 2 turns, 200+40 tokens, $0.0012\n"
    );

    // Input during a turn steers it.
    pi.model.then([Stall, Text(&["Turned left."])]);
    attached.types("go");
    eventually("the model was asked", || {
        (pi.model.stalled() == 1).then_some(())
    });
    attached.types("left");
    attached.reads("- 1 prompt queued");
    pi.model.release();
    shown = attached.reads("- idle");
    assert!(
        shown.contains("  Here at last.\n> left\n  Turned left.\n"),
        "{shown}"
    );

    // Ctrl-C detaches.
    let person = rustix::process::Pid::from_child(&attached.child);
    rustix::process::kill_process(person, rustix::process::Signal::INT).unwrap();
    let (code, message) = attached.ends();
    assert_eq!(code, Some(0));
    assert!(
        message.contains("invalid answer \"perhaps\"")
            && message.contains(&format!("colibri attach {id}")),
        "{message}"
    );
    assert_eq!(pi.daemon.agent(&id)["state"], "idle");

    // Attaching again shows the earlier output.
    let mut attached = Attached::to(&pi, &id);
    shown = attached.reads("- idle after 2 turns, 200+40");
    assert!(shown.starts_with("> what does it say?\n* bash: echo one > one; cat one\n? Run this? echo one > one; cat one (y or n)\n"), "{shown}");
    pi.daemon.ok(&["kill", &id]);
    let code = pi.daemon.cli(&["wait", &id]).status.code();
    assert_eq!(attached.ends().0, code);
}

#[test]
fn commands_of_the_agents_page_work() {
    let page = read("docs/agents.md");
    let blocks = page.split("<!-- tested -->\n```sh\n").skip(1);
    let script: String = blocks
        .map(|block| block.split("```").next().unwrap())
        .collect();
    assert!(script.lines().count() > 15, "{script}");
    let model = Model::answering([], |request| {
        match request.to_string().contains("what does this project do?") {
            true => Text(&["It fixes tests."]),
            false => Stall,
        }
    });
    let daemon = Daemon::prepare();
    let settings = daemon.path(".pi/agent");
    fs::create_dir_all(&settings).unwrap();
    fs::create_dir(daemon.path("project")).unwrap();
    fs::write(settings.join("models.json"), model.models_json()).unwrap();
    let chosen = json!({"defaultProvider": "scripted", "defaultModel": "m"});
    fs::write(settings.join("settings.json"), chosen.to_string()).unwrap();
    daemon.run_documented(
        &format!("export PI_OFFLINE=1\n{script}\ncolibri shutdown"),
        &[&bin(&daemon.path(""))],
        &[
            "> make the tests pass\n",
            "- aborted\n",
            "> what does this project do?\n  It fixes tests.\n- idle after 1 turn",
            "  got hello\n",
        ],
    );
}
