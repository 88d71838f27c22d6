//! Real agents by their presets, with a scripted model. Each test fills a row of the table in docs/agents.md.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use colibri_tests::pi::{bin_of, tools_of};
use colibri_tests::real_agent::{AgentCase, AgentSetup, CLAUDE, GEMINI, PI};
use colibri_tests::scripted_model::ANSWER;
use colibri_tests::{Daemon, eventually, program, read, repository, text};
use serde_json::{Value, json};

/// What was found to work; a row of the table.
#[derive(Default)]
struct Row(Vec<(&'static str, String)>);

impl Row {
    fn add(&mut self, column: &'static str, value: impl Into<String>) {
        self.0.push((column, value.into()));
    }
}

/// The checks of one agent.
trait Checks {
    fn check_once(&self, row: &mut Row) -> Value;
    fn check_documented(&self);
    fn check_resume(&self, row: &mut Row, args: &[&str]);
    fn check_failure(&self, row: &mut Row);
    fn check_driven(&self, row: &mut Row);
    fn check_permission(&self, row: &mut Row);
    fn check_resumed_permission(&self);
}

impl Checks for AgentSetup {
    /// Runs one prompt: the file is made, the transcript is readable, and the view is complete.
    fn check_once(&self, row: &mut Row) -> Value {
        let output = self
            .agent(&["run", "make it [cmd=echo made > made.txt]"])
            .output()
            .unwrap();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{out}\n{err}");
        assert!(out.contains(ANSWER), "{out}\n{err}");
        let made = fs::read_to_string(self.project.join("made.txt"));
        assert_eq!(made.unwrap_or_default(), "made\n", "{out}\n{err}");
        let agent = self.last_agent();
        assert_eq!(agent["state"], "done", "{agent}");
        row.add("one prompt", agent["runtime"].as_str().unwrap());
        let view = &agent["view"];
        if view.is_object() {
            assert_eq!(view["answer"], ANSWER, "{agent}");
            assert!(view["turns"].as_u64().unwrap() > 0, "{agent}");
            assert_eq!(
                view["malformed_lines"],
                0,
                "{}",
                text(&self.daemon.stdout(agent["id"].as_str().unwrap()))
            );
            assert_eq!(view["mismatch"], Value::Null);
        }
        let tokens = view["output_tokens"].as_u64().unwrap_or(0) > 0;
        row.add("tokens", yes(tokens));
        row.add("cost", yes(view["cost_usd"].as_f64().unwrap_or(0.0) > 0.0));
        row.add("session", yes(view["session"].is_string()));
        agent
    }

    /// Runs the commands of this agent in docs/agents.md.
    fn check_documented(&self) {
        let page = read("docs/agents.md");
        let mark = format!("<!-- tested: {} -->\n```sh\n", self.case.name);
        let (_, block) = page.split_once(&mark).unwrap();
        let script = block.split("```").next().unwrap();
        let options: Vec<String> = self
            .case
            .options
            .iter()
            .map(|option| self.fill(option))
            .collect();
        let preset = format!(
            "--jail-path / {} --agent {}",
            options.join(" "),
            self.case.name
        );
        let script = script.replace(&format!("--agent {}", self.case.name), &preset);
        let colibri = program("colibri");
        let tools = bin_of(&tools_of(self.case.name));
        let mut command = self.daemon.external_command("sh");
        command
            .args(["-euxc", &script])
            .current_dir(&self.project)
            .env(
                "PATH",
                format!(
                    "{}:{}:/usr/bin:/bin",
                    colibri.parent().unwrap().display(),
                    tools.display()
                ),
            );
        for (name, value) in self.case.variables {
            command.env(name, self.fill(value));
        }
        let output = command.output().unwrap();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{out}\n{err}");
        assert!(out.contains(ANSWER), "{out}\n{err}");
    }

    /// Continues the session of the last agent in its home.
    fn check_resume(&self, row: &mut Row, args: &[&str]) {
        let ended = self.last_agent();
        let id = ended["id"].as_str().unwrap();
        let mut words = vec!["resume", id, "again [cmd=echo again > again.txt]"];
        if self.case.variables.is_empty() {
            words.extend(["--env", "COLIBRI_TEST=1"]);
        }
        if !args.is_empty() {
            words.push("--");
            words.extend(args);
        }
        let resumed = self.cli(&words).trim().to_owned();
        assert_ne!(resumed, id);
        let agent = eventually("the resumed agent ends", || {
            let agent = self.daemon.agent(&resumed);
            agent["exit"].is_object().then_some(agent)
        });
        let output = text(&self.daemon.stdout(&resumed));
        assert_eq!(agent["state"], "done", "{agent}\n{output}");
        assert!(self.project.join("again.txt").exists(), "{output}");
        let [before, after] = [&ended, &agent].map(|agent| &agent["view"]["session"]);
        if before.is_string() {
            assert_eq!(before, after, "{output}");
        }
        // The home belongs to the new agent.
        let output = self.command(&["resume", id, "x"]).output().unwrap();
        let message = text(&output.stderr);
        assert!(
            message.contains("does not exist: a later agent"),
            "{message}"
        );
        row.add("resume", "yes");
    }

    /// Runs a prompt that the model refuses: the state is `error` and the reason is shown.
    fn check_failure(&self, row: &mut Row) {
        let output = self.agent(&["run", "x [http401]"]).output().unwrap();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        let agent = self.last_agent();
        assert_eq!(agent["state"], "error", "{out}\n{err}");
        assert!(
            format!("{out}{err}").contains("api-key")
                || format!("{out}{err}").contains("401")
                || format!("{out}{err}").contains("API key"),
            "{out}\n{err}"
        );
        row.add("failure", yes(agent["view"]["last_error"].is_string()));
    }

    /// Sends prompts to a driven agent, and aborts one.
    fn check_driven(&self, row: &mut Row) {
        let id = self.spawn(&[]);
        let answer = self.cli(&[
            "prompt",
            "--wait",
            "--timeout",
            "60s",
            &id,
            "first [cmd=echo 1 > one.txt]",
        ]);
        assert!(answer.contains(ANSWER), "{answer}");
        assert!(self.project.join("one.txt").exists());
        let agent = self.wait_for_state(&id, "idle");
        row.add("prompts", agent["runtime"].as_str().unwrap());
        // The tool runs until it is aborted.
        self.cli(&["prompt", &id, "second [cmd=echo 2 > two.txt; sleep 1000]"]);
        let agent = eventually("the tool runs", || {
            let agent = self.daemon.agent(&id);
            agent["view"]["current_tool"].is_string().then_some(agent)
        });
        assert_eq!(agent["state"], "working", "{agent}");
        row.add("tool", agent["view"]["current_tool"].as_str().unwrap());
        self.cli(&["abort", &id]);
        self.wait_for_state(&id, "idle");
        row.add("abort", "yes");
        let answer = self.cli(&[
            "prompt",
            "--wait",
            "--timeout",
            "60s",
            &id,
            "third [cmd=echo 3 > three.txt]",
        ]);
        assert!(answer.contains(ANSWER), "{answer}");
        assert!(self.project.join("three.txt").exists());
        self.cli(&["kill", &id]);
    }

    /// Checks that an agent asks before it runs a command, and that the answer reaches it.
    fn check_permission(&self, row: &mut Row) {
        let id = self.spawn(&["--ask"]);
        self.cli(&["prompt", &id, "ask [cmd=touch asked.txt]"]);
        self.wait_for_state(&id, "blocked");
        assert!(!self.project.join("asked.txt").exists());
        let mut attached = self
            .command(&["attach", &id])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut shown = BufReader::new(attached.stdout.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("? ") {
            line.clear();
            assert!(shown.read_line(&mut line).unwrap() > 0, "no question");
        }
        attached.stdin.as_mut().unwrap().write_all(b"y\n").unwrap();
        self.wait_for_state(&id, "idle");
        assert!(self.project.join("asked.txt").exists());
        self.cli(&["kill", &id]);
        attached.wait().unwrap();
        row.add("permission", "yes");
    }

    /// Checks that an agent that asked still asks after it is resumed.
    fn check_resumed_permission(&self) {
        let id = self.last_agent()["id"].as_str().unwrap().to_owned();
        let words = ["resume", &id, "x"];
        let refused = self.command(&words).output().unwrap();
        let message = text(&refused.stderr);
        assert!(message.contains("started with --ask"), "{message}");
        let resumed = self.cli(&words[..2]).trim().to_owned();
        self.cli(&["prompt", &resumed, "ask [cmd=touch unasked.txt]"]);
        self.wait_for_state(&resumed, "blocked");
        assert!(!self.project.join("unasked.txt").exists());
        self.cli(&["kill", &resumed]);
    }
}

/// Loses power while the agent works: it comes back and continues its session.
fn check_reboot(setup: &mut AgentSetup, row: &mut Row) {
    let id = setup.spawn(&[
        "--restart",
        "on-reboot",
        // The agent may lose the record of its tool call, and then makes it again.
        "go [cmd=mkdir begun && sleep 1000 || true]",
    ]);
    let begun = setup.project.join("begun");
    eventually("the tool runs", || begun.exists().then_some(()));
    setup.daemon.lose_power();
    let mut command = setup.daemon.command("colibri-daemon");
    for (name, value) in setup.case.variables {
        command.env(name, setup.fill(value));
    }
    // Values of --env are not stored.
    for pair in setup.case.options.windows(2) {
        if let ("--env", Some((name, value))) = (pair[0], pair[1].split_once('=')) {
            command.env(name, setup.fill(value));
        }
    }
    setup.daemon.launch_command(command);
    let agent = eventually("the agent comes back and ends", || {
        let old = setup.daemon.agent(&id);
        assert_ne!(old["state"], "blocked", "{old}");
        let mut agents = setup.daemon.agents().into_iter();
        agents.find(|agent| agent["resumes"] == *id && agent["exit"].is_object())
    });
    let output = text(&setup.daemon.stdout(agent["id"].as_str().unwrap()));
    assert_eq!(agent["state"], "done", "{agent}\n{output}");
    assert!(output.contains(ANSWER), "{output}");
    let old = setup.daemon.agent(&id);
    if old["view"]["session"].is_string() {
        assert_eq!(old["view"]["session"], agent["view"]["session"], "{output}");
    }
    row.add("reboot", "yes");
}

fn yes(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

fn finish(setup: &AgentSetup, row: Row) {
    let listed: Value =
        serde_json::from_str(&setup.cli(&["agents", "--json", setup.case.name])).unwrap();
    let version = json!(listed["version"]);
    let mut shown = format!("version: {}\n", version.as_str().unwrap_or("unknown"));
    for (column, value) in row.0 {
        shown.push_str(&format!("{column}: {value}\n"));
    }
    insta::assert_snapshot!(setup.case.name, shown);
}

#[test]
fn claude_runs_by_its_preset() {
    let mut setup = AgentSetup::new(CLAUDE);
    let mut row = Row::default();
    setup.check_once(&mut row);
    setup.check_resume(&mut row, setup.case.args);
    setup.check_failure(&mut row);
    setup.check_driven(&mut row);
    setup.check_permission(&mut row);
    setup.check_resumed_permission();
    setup.check_documented();
    check_reboot(&mut setup, &mut row);
    finish(&setup, row);
}

#[test]
fn codex_runs_by_its_preset() {
    let mut setup = AgentSetup::new(AgentCase {
        name: "codex",
        variables: &[
            ("OPENAI_API_KEY", "sk-0123456789abcdef0123"),
            ("OPENAI_BASE_URL", "MODEL_URL/v1"),
        ],
        files: &[],
        options: &[],
        args: &[
            "-c",
            "model=gpt-5",
            "-c",
            "model_providers.colibri.stream_max_retries=0",
            "-c",
            "model_providers.colibri.request_max_retries=0",
        ],
    });
    let mut row = Row::default();
    setup.check_once(&mut row);
    setup.check_resume(&mut row, setup.case.args);
    setup.check_failure(&mut row);
    setup.check_driven(&mut row);
    setup.check_permission(&mut row);
    setup.check_resumed_permission();
    setup.check_documented();
    check_reboot(&mut setup, &mut row);
    finish(&setup, row);
}

#[test]
fn gemini_runs_by_its_preset() {
    let mut setup = AgentSetup::new(GEMINI);
    let mut row = Row::default();
    setup.check_once(&mut row);
    setup.check_resume(&mut row, setup.case.args);
    setup.check_failure(&mut row);
    setup.check_driven(&mut row);
    setup.check_permission(&mut row);
    setup.check_documented();
    check_reboot(&mut setup, &mut row);
    finish(&setup, row);
}

#[test]
fn qwen_runs_by_its_preset() {
    let mut setup = AgentSetup::new(AgentCase {
        name: "qwen",
        variables: &[
            ("OPENAI_API_KEY", "sk-0123456789abcdef0123"),
            ("OPENAI_BASE_URL", "MODEL_URL/v1"),
            ("OPENAI_MODEL", "scripted"),
        ],
        files: &[],
        options: &[],
        args: &[],
    });
    let mut row = Row::default();
    setup.check_once(&mut row);
    setup.check_resume(&mut row, setup.case.args);
    setup.check_failure(&mut row);
    setup.check_driven(&mut row);
    setup.check_permission(&mut row);
    setup.check_documented();
    check_reboot(&mut setup, &mut row);
    finish(&setup, row);
}

#[test]
fn copilot_runs_by_its_preset() {
    let mut setup = AgentSetup::new(AgentCase {
        name: "copilot",
        variables: &[
            ("COPILOT_PROVIDER_API_KEY", "sk-0123456789abcdef0123"),
            ("COPILOT_PROVIDER_BASE_URL", "MODEL_URL/v1"),
            ("COPILOT_MODEL", "gpt-5"),
            ("COPILOT_OFFLINE", "true"),
        ],
        files: &[],
        options: &[],
        args: &[],
    });
    let mut row = Row::default();
    setup.check_once(&mut row);
    setup.check_resume(&mut row, setup.case.args);
    setup.check_failure(&mut row);
    setup.check_driven(&mut row);
    setup.check_permission(&mut row);
    setup.check_documented();
    check_reboot(&mut setup, &mut row);
    finish(&setup, row);
}

#[test]
fn opencode_runs_by_its_preset() {
    let mut setup = AgentSetup::new(AgentCase {
        name: "opencode",
        variables: &[],
        files: &[
            (
                ".config/opencode/opencode.json",
                r#"{"provider":{"scripted":{"npm":"@ai-sdk/openai-compatible","name":"s","options":{"baseURL":"MODEL_URL/v1"},"models":{"scripted":{"name":"scripted","cost":{"input":1,"output":5}}}}},"model":"scripted/scripted","small_model":"scripted/scripted"}"#,
            ),
            (
                ".local/share/opencode/auth.json",
                r#"{"scripted":{"type":"api","key":"sk-0123456789abcdef"}}"#,
            ),
        ],
        options: &["--allow", "127.0.0.1:PORT"],
        args: &[],
    });
    let mut row = Row::default();
    setup.check_once(&mut row);
    setup.check_resume(&mut row, setup.case.args);
    setup.check_failure(&mut row);
    setup.check_driven(&mut row);
    setup.check_permission(&mut row);
    setup.check_documented();
    check_reboot(&mut setup, &mut row);
    finish(&setup, row);
}

#[test]
fn pi_runs_by_its_preset() {
    let mut setup = AgentSetup::new(PI);
    let mut row = Row::default();
    setup.check_once(&mut row);
    setup.check_resume(&mut row, setup.case.args);
    setup.check_failure(&mut row);
    setup.check_driven(&mut row);
    setup.check_documented();
    check_reboot(&mut setup, &mut row);
    finish(&setup, row);
}

#[test]
fn cline_runs_by_its_preset() {
    let mut setup = AgentSetup::new(AgentCase {
        name: "cline",
        // Its ACP mode takes the key from the environment, and the URL from the file.
        variables: &[
            ("CLINE_API_KEY", "sk-0123456789abcdef"),
            ("CLINE_PROVIDER", "openai-native"),
            ("CLINE_MODEL", "gpt-5"),
        ],
        files: &[(
            ".cline/data/settings/providers.json",
            r#"{"version":1,"lastUsedProvider":"openai-native","providers":{"openai-native":{"settings":{"provider":"openai-native","apiKey":"sk-0123456789abcdef","model":"gpt-5","baseUrl":"MODEL_URL/v1"},"updatedAt":"2026-01-01T00:00:00.000Z","tokenSource":"manual"}}}"#,
        )],
        options: &["--allow", "127.0.0.1:PORT"],
        args: &[],
    });
    let mut row = Row::default();
    setup.check_once(&mut row);
    setup.check_resume(&mut row, setup.case.args);
    setup.check_failure(&mut row);
    setup.check_driven(&mut row);
    setup.check_permission(&mut row);
    setup.check_documented();
    check_reboot(&mut setup, &mut row);
    finish(&setup, row);
}

#[test]
fn aider_runs_by_its_preset() {
    let setup = AgentSetup::new(AgentCase {
        name: "aider",
        variables: &[
            ("OPENAI_API_KEY", "sk-0123456789abcdef"),
            ("OPENAI_API_BASE", "MODEL_URL/v1"),
            ("AIDER_MODEL", "openai/scripted"),
        ],
        files: &[],
        options: &[],
        args: &[
            "--model",
            "openai/scripted",
            "--no-git",
            "--no-show-model-warnings",
        ],
    });
    // It has no tools: it writes what the model answers.
    let output = setup.agent(&["run", "say hello"]).output().unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    assert!(out.contains(ANSWER), "{out}\n{err}");
    let mut row = Row::default();
    row.add(
        "one prompt",
        setup.last_agent()["runtime"].as_str().unwrap(),
    );
    setup.check_documented();
    finish(&setup, row);
}

#[test]
fn table_of_agents_is_current() {
    const COLUMNS: &[&str] = &[
        "version",
        "one prompt",
        "prompts",
        "tool",
        "tokens",
        "cost",
        "session",
        "failure",
        "permission",
        "abort",
        "resume",
        "reboot",
    ];
    let mut table = format!(
        "| agent | {} | terminal |\n|{}\n",
        COLUMNS.join(" | "),
        "---|".repeat(COLUMNS.len() + 2)
    );
    for agent in [
        "pi", "claude", "codex", "gemini", "qwen", "opencode", "copilot", "cline", "aider",
    ] {
        let snapshot = read(&format!("tests/tests/snapshots/presets__{agent}.snap"));
        let cell = |column: &&str| {
            let line = snapshot
                .lines()
                .find_map(|line| line.strip_prefix(&format!("{column}: ")));
            line.unwrap_or("-").to_owned()
        };
        let mut cells: Vec<String> = COLUMNS.iter().map(cell).collect();
        // tests/agents.rs shows the screen of these on attached terminals.
        let screen = format!("tests/tests/snapshots/agents__{agent}_answered.snap");
        cells.push(match repository().join(screen).exists() {
            true => "yes".to_owned(),
            false => "-".to_owned(),
        });
        table.push_str(&format!("| {agent} | {} |\n", cells.join(" | ")));
    }
    let page = read("docs/agents.md");
    let (head, rest) = page.split_once("<!-- table of agents -->\n").unwrap();
    let (shown, tail) = rest.split_once("<!-- end of the table -->").unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let page =
            format!("{head}<!-- table of agents -->\n{table}<!-- end of the table -->{tail}");
        fs::write(repository().join("docs/agents.md"), page).unwrap();
    } else {
        assert_eq!(shown, table, "run this test with UPDATE_DOCS=1");
    }
}

#[test]
fn agent_that_cannot_run_says_what_is_missing() {
    let daemon = Daemon::start();
    let mut shown = String::new();
    let tools = tools_of("claude").join("node_modules/.bin");
    for (path, words) in [
        (tools.to_str().unwrap(), &["--agent", "claude", "x"][..]),
        ("/nowhere", &["--agent", "claude", "x"]),
        ("/nowhere", &["--agent", "no-such-agent", "x"]),
        (
            tools.to_str().unwrap(),
            &["--agent", "claude", "--ask", "x"],
        ),
        ("/nowhere", &["x"]),
    ] {
        let output = daemon
            .command("colibri")
            .args(["--no-autostart", "run", "--jail-path", "/"])
            .args(words)
            .env("PATH", path)
            .output()
            .unwrap();
        let code = output.status.code();
        shown.push_str(&format!("{words:?}: {code:?}\n{}\n", text(&output.stderr)));
    }
    insta::assert_snapshot!(shown);
}
