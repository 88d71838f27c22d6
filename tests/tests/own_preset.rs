//! A preset of the user in colibri.toml.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::process::Output;

use colibri_tests::{Daemon, text, write_file};

const SETTINGS: &str = r#"
[defaults]
no_jail = true

[agent.mine]
about = "My agent"
program = "my-agent"
install = "ask me"
prompt_args = ["--task", "{prompt}"]
stdin_args = ["--serve"]
home_files = ["~/.my-agent/settings"]
login_hint = "set MY_KEY"
env = { MODE = "quiet" }

[[agent.mine.key]]
name = "MY_KEY"
host = "api.example.com"

[agent.continued]
program = "my-agent"
prompt_args = ["{resume}", "--task", "{prompt}"]
terminal_args = ["--screen", "{resume}"]
resume_last_args = ["--continue"]
home_files = ["~/.my-agent/settings"]
login_files = ["~/.my-agent/settings"]

[[agent.continued.key]]
name = "MY_KEY"
host = "api.example.com"
"#;

fn setup() -> Daemon {
    let daemon = Daemon::start();
    fs::write(daemon.path(".config/colibri/colibri.toml"), SETTINGS).unwrap();
    let script = "#!/bin/sh\nmkdir -p ~/.my-agent\necho \"$MODE:$*:$MY_KEY:$(cat ~/.my-agent/settings 2>/dev/null)\"\necho changed > ~/.my-agent/settings\n";
    for directory in ["bin", ".my-agent", "project"] {
        fs::create_dir_all(daemon.path(directory)).unwrap();
    }
    write_file(&daemon.path("bin/my-agent"), script, 0o755);
    fs::write(daemon.path(".my-agent/settings"), "mine\n").unwrap();
    daemon
}

fn colibri(daemon: &Daemon, words: &[&str], key: Option<&str>) -> Output {
    let mut command = daemon.command("colibri");
    command
        .current_dir(daemon.path("project"))
        .arg("--no-autostart")
        .args(words)
        .env(
            "PATH",
            format!("{}:/usr/bin:/bin", daemon.path("bin").display()),
        );
    if let Some(key) = key {
        command.env("MY_KEY", key);
    }
    command.output().unwrap()
}

#[test]
fn own_preset_gives_copied_settings_and_a_placeholder() {
    let daemon = setup();
    let words = ["run", "--jail-path", "/", "--agent", "mine", "do it"];
    let output = colibri(&daemon, &words, Some("sk-0123456789abcdef"));
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    let out = out.trim();
    assert!(
        out.starts_with("quiet:--task do it:colibri-placeholder-"),
        "{out}{err}"
    );
    assert!(out.ends_with(":mine"), "{out}");
    // The agent has changed its copy only.
    let settings = fs::read_to_string(daemon.path(".my-agent/settings")).unwrap();
    assert_eq!(settings, "mine\n");
}

#[test]
fn resumed_agent_gets_no_key_that_it_did_not_have() {
    let daemon = setup();
    let resume = |key, name: &str| {
        let words = [
            "run",
            "--jail-path",
            "/",
            "--agent",
            "continued",
            "--name",
            name,
            "x",
        ];
        let output = colibri(&daemon, &words, key);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let output = colibri(&daemon, &["resume", name, "y"], Some("sk-0123456789abcdef"));
        assert!(output.status.success(), "{}", text(&output.stderr));
        let id = text(&output.stdout).trim().to_owned();
        daemon.wait(&id);
        text(&daemon.stdout(&id))
    };
    let out = resume(None, "login");
    assert_eq!(out.trim(), ":--continue --task y::changed");
    let out = resume(Some("sk-0123456789abcdef"), "key");
    assert!(
        out.starts_with(":--continue --task y:colibri-placeholder-"),
        "{out}"
    );
}

#[test]
fn agent_with_a_terminal_has_one_when_it_is_resumed() {
    let daemon = setup();
    let ok = |words: &[&str]| {
        let output = colibri(&daemon, words, None);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).trim().to_owned()
    };
    let mut id = ok(&["spawn", "-t", "--jail-path", "/", "--agent", "continued"]);
    daemon.wait(&id);
    for (prompt, expected) in [
        (None, ":--screen --continue::changed\r\n"),
        (Some("go"), ":--screen --continue go::changed\r\n"),
    ] {
        let words: Vec<&str> = ["resume", &id].into_iter().chain(prompt).collect();
        id = ok(&words);
        daemon.wait(&id);
        assert_eq!(text(&daemon.stdout(&id)), expected);
    }
}

#[test]
fn missing_login_program_and_preset_are_named() {
    let daemon = setup();
    let message = |words: &[&str]| {
        let output = colibri(&daemon, words, None);
        assert!(!output.status.success());
        text(&output.stderr)
    };
    let login = message(&["run", "--agent", "mine", "x"]);
    assert!(
        login.contains("none of the variables MY_KEY is set; set MY_KEY"),
        "{login}"
    );
    let unknown = message(&["run", "--agent", "other", "x"]);
    assert!(
        unknown.contains("no preset \"other\"") && unknown.contains("mine"),
        "{unknown}"
    );
    fs::remove_file(daemon.path("bin/my-agent")).unwrap();
    let missing = message(&["run", "--agent", "mine", "x"]);
    assert!(
        missing.contains("cannot find my-agent") && missing.contains("ask me"),
        "{missing}"
    );
}

#[test]
fn explain_and_agents_show_what_the_agent_is_given() {
    let daemon = setup();
    let show = |words: &[&str]| {
        let output = colibri(&daemon, words, Some("sk-0123456789abcdef"));
        assert!(output.status.success(), "{}", text(&output.stderr));
        let shown = format!("{}{}", text(&output.stderr), text(&output.stdout));
        assert!(!shown.contains("sk-0123456789abcdef"), "{shown}");
        shown.replace(daemon.directory().to_str().unwrap(), "HOME")
    };
    insta::assert_snapshot!("agents", show(&["agents", "mine"]));
    let explained = show(&["explain", "--jail-path", "/", "--agent", "mine", "do it"]);
    for part in [
        "HOME/bin/my-agent",
        ".my-agent/settings",
        "MY_KEY@api.example.com",
        "HOME/project",
    ] {
        assert!(explained.contains(part), "{part}: {explained}");
    }
}
