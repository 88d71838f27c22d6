//! The settings file with the real programs: profiles, autostart, reload, and diagnostics.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;

use colibri_tests::{Daemon, eventually, signal, text, wait_until, write_file};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Writes the settings file of the daemon's user.
fn write_settings(daemon: &Daemon, text: &str) {
    let path = daemon.path(".config/colibri/colibri.toml");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// Returns all agents with this name, oldest first.
fn agents_named(daemon: &Daemon, name: &str) -> Vec<Value> {
    let mut agents = daemon.agents();
    agents.retain(|agent| agent["name"] == name);
    agents.sort_by_key(|agent| agent["started_at"].to_string());
    agents
}

/// Waits until an agent with this name runs, and returns it.
fn wait_for_running(daemon: &Daemon, name: &str) -> Value {
    eventually(&format!("{name} runs"), || {
        agents_named(daemon, name)
            .into_iter()
            .find(|agent| agent["exited_at"].is_null())
    })
}

fn send_hangup(daemon: &Daemon) {
    signal(daemon.pid(), Signal::HUP);
}

const REVIEW: &str = r#"
[profile.review]
program = "sh"
args = ["-c", 'echo "$GREETING $WHOM from $PWD"']
env = { GREETING = "hello", WHOM = "world" }
cwd = "/usr"
jail = { path = "/", ip4 = "disable" }
name = "reviewer"
"#;

#[test]
fn profile_supplies_options_missing_on_the_command_line() {
    let mut daemon = Daemon::prepare();
    write_settings(&daemon, REVIEW);
    let explain = |daemon: &Daemon, args: &[&str]| {
        let words: Vec<&str> = ["explain", "--json", "--profile", "review"]
            .iter()
            .chain(args)
            .copied()
            .collect();
        serde_json::from_str::<Value>(&daemon.cli_ok(&words)).unwrap()
    };
    let without_daemon = explain(&daemon, &[]);
    let has_no_network =
        |explained: &Value| explained["args"].to_string().contains("--unshare-net");
    assert!(has_no_network(&without_daemon), "{without_daemon}");
    let overridden = explain(&daemon, &["--jail-ip4", "inherit", "--", "ls"]);
    assert!(!has_no_network(&overridden), "{overridden}");
    assert_eq!(overridden["args"].as_array().unwrap().last().unwrap(), "ls");

    daemon.launch();
    let mut wire = daemon.connect();
    let answer = wire.call("explain-spawn", json!({"profile": "review"}));
    assert_eq!(
        answer["result"],
        explain(&daemon, &[]),
        "the client and the daemon read the same file"
    );
    for (args, expected) in [
        (&["--profile", "review"][..], "hello world from /usr\n"),
        (
            &["--profile", "review", "--env", "WHOM=you", "--cwd", "/bin"],
            "hello you from /bin\n",
        ),
        (
            &["--profile", "review", "--", "printenv", "WHOM"],
            "world\n",
        ),
    ] {
        let words: Vec<&str> = ["run"].iter().chain(args).copied().collect();
        assert_eq!(daemon.cli_ok(&words), expected, "{args:?}");
    }
    let id = daemon.spawn(&["--profile", "review"]);
    let agent = daemon.agent(&id);
    assert_eq!(
        (&agent["name"], &agent["jail"]["ip4"]),
        (&json!("reviewer"), &json!("disable"))
    );
    let answer = wire.call(
        "spawn-agent",
        json!({"profile": "review", "name": "mine", "jail": {"ip4": "inherit"}}),
    );
    let agent = daemon.agent(answer["result"]["id"].as_str().unwrap());
    assert_eq!(
        (&agent["name"], &agent["jail"]),
        (&json!("mine"), &json!({"path": "/", "ip4": "inherit"}))
    );
    let listed = wire.call("list-profiles", json!({}))["result"]["profiles"].clone();
    assert_eq!(listed[0]["env"], json!(["GREETING", "WHOM"]), "{listed}");
    assert!(daemon.cli_ok(&["profiles"]).contains("review"));
}

#[test]
fn profile_without_cwd_keeps_the_current_directory() {
    let mut daemon = Daemon::prepare();
    write_settings(&daemon, "[profile.here]\nprogram = \"pwd\"\n");
    daemon.launch();
    let output = daemon
        .command("colibri")
        .args(["run", "--profile", "here"])
        .current_dir("/usr/bin")
        .output()
        .unwrap();
    assert_eq!(
        text(&output.stdout),
        "/usr/bin\n",
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn sandboxed_agent_cannot_read_the_settings_file() {
    let mut daemon = Daemon::prepare();
    write_settings(&daemon, "[profile.a]\nenv = { TOKEN = \"x\" }\n");
    daemon.launch();
    let file = daemon.path(".config/colibri/colibri.toml");
    let cat = ["--", "cat", file.to_str().unwrap()];
    assert!(
        daemon
            .cli(&[&["run", "--no-jail"], &cat[..]].concat())
            .status
            .success()
    );
    for view in ["minimal", "host"] {
        let sandbox = ["run", "--jail-path", "/", "--view", view];
        let output = daemon.cli(&[&sandbox, &cat[..]].concat());
        assert_eq!(output.status.code(), Some(1));
        let message = text(&output.stderr);
        assert!(message.contains("No such file"), "{message}");
    }
}

#[test]
fn unknown_profile_is_an_error_that_lists_known_ones() {
    let mut daemon = Daemon::prepare();
    write_settings(&daemon, &format!("{REVIEW}[profile.fix]\n"));
    daemon.launch();
    for (command, code) in [("run", 125), ("spawn", 1), ("explain", 1)] {
        let output = daemon.cli(&[command, "--profile", "reviw"]);
        assert_eq!(output.status.code(), Some(code));
        let message = text(&output.stderr);
        assert!(
            message.contains("\"reviw\"") && message.contains("fix, review"),
            "{message}"
        );
        assert_eq!(daemon.cli(&[command]).status.code(), Some(2), "no program");
    }
    for (params, kind) in [
        (json!({"profile": "x"}), "unknown-profile"),
        (json!({"profile": "fix"}), "invalid-params"),
        (json!({}), "invalid-params"),
    ] {
        let answer = daemon.connect().call("spawn-agent", params);
        assert_eq!(answer["error"]["data"]["kind"], kind, "{answer}");
    }
}

#[test]
fn autostart_agent_is_started_once() {
    let mut daemon = Daemon::prepare();
    write_settings(
        &daemon,
        r#"
[profile.idle]
program = "sleep"
args = ["1000"]
[[autostart]]
profile = "idle"
name = "broken"
program = "/no/such/program"
[[autostart]]
profile = "idle"
name = "night"
[[autostart]]
name = "jailed"
profile = "idle"
jail = { path = "/" }
"#,
    );
    daemon.launch();
    let first = wait_for_running(&daemon, "night");
    wait_for_running(&daemon, "jailed");
    let spec = daemon.agent_dir(first["id"].as_str().unwrap());
    let spec = fs::read_to_string(spec.join("spec.json")).unwrap();
    assert!(spec.contains("\"autostart\":\"night\""), "{spec}");
    let audit = fs::read_to_string(daemon.state().join("audit.jsonl")).unwrap();
    assert!(
        audit.contains(&format!("\"id\":{}", first["id"])),
        "{audit}"
    );
    assert!(audit.contains("/no/such/program"), "{audit}");
    // The agent that cannot be started is reported, and the others are started.
    assert!(
        daemon.log().contains("cannot start [[autostart]] agent"),
        "{}",
        daemon.log()
    );
    let doctor = daemon.cli(&["doctor"]);
    assert_eq!(doctor.status.code(), Some(1));
    assert!(
        text(&doctor.stdout).contains("[[autostart]] agent \"broken\""),
        "{}",
        text(&doctor.stdout)
    );

    for restarts in 1..=2 {
        daemon.kill();
        daemon.launch();
        wait_until("both agents were adopted", || {
            daemon
                .log()
                .matches("[[autostart]] agent already runs")
                .count()
                == 2 * restarts
        });
    }
    let agents = agents_named(&daemon, "night");
    assert_eq!(agents.len(), 1, "{agents:?}");
    assert_eq!(agents[0]["pid"], first["pid"], "the same process");
    assert_eq!(agents_named(&daemon, "jailed").len(), 1);

    // The next daemon starts a new agent in place of one that has ended.
    daemon.cli_ok(&["kill", "night", "--grace", "0s"]);
    send_hangup(&daemon);
    wait_until("the settings were reloaded", || {
        daemon.log().contains("settings reloaded")
    });
    assert_eq!(
        agents_named(&daemon, "night").len(),
        1,
        "a reload does not start it"
    );
    assert!(daemon.terminate());
    daemon.launch();
    let second = wait_for_running(&daemon, "night");
    assert_ne!(second["id"], first["id"]);
    assert_eq!(agents_named(&daemon, "night").len(), 2);
    // The name selects the running agent.
    daemon.cli_ok(&["kill", "night", "--grace", "0s"]);
    assert!(!daemon.agent(second["id"].as_str().unwrap())["exited_at"].is_null());
}

#[test]
fn reload_applies_changes_and_names_those_needing_a_restart() {
    let mut daemon = Daemon::prepare();
    write_settings(
        &daemon,
        "[profile.say]\nprogram = \"echo\"\nargs = [\"one\"]\n",
    );
    daemon.launch();
    assert_eq!(daemon.cli_ok(&["run", "--profile", "say"]), "one\n");

    let changed = r#"
segment_bytes = 4096
helper = "/elsewhere/helper"
[profile.say]
program = "echo"
args = ["two"]
[profile.much]
program = "sh"
args = ["-c", "while read line; do head -c 5000 /dev/zero; done"]
[[autostart]]
name = "existing"
program = "sleep"
args = ["1000"]
[[autostart]]
name = "missing"
program = "/DIRECTORY/missing"
"#
    .replace("/DIRECTORY", daemon.directory().to_str().unwrap());
    write_settings(&daemon, &changed);
    let output = daemon.cli(&["config", "reload", "--json"]);
    assert_eq!(
        output.status.code(),
        Some(1),
        "one agent could not be started"
    );
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["settings"], json!(["segment_bytes"]));
    assert_eq!(result["needs_restart"], json!(["helper"]));
    assert_eq!(
        result["profiles"],
        json!({"added": ["much"], "changed": ["say"], "removed": []})
    );
    assert_eq!(result["autostart"]["added"], json!(["existing", "missing"]));
    assert_eq!(result["started"][0]["name"], "existing");
    assert_eq!(result["not_started"][0]["name"], "missing");
    assert_eq!(daemon.cli_ok(&["run", "--profile", "say"]), "two\n");
    let id = daemon.spawn(&["--profile", "much"]);
    for prompts in 1..=3 {
        daemon.cli_ok(&["send", &id, "more"]);
        wait_until("the agent has written", || {
            daemon.agent(&id)["stdout_bytes"] == json!(5000 * prompts)
        });
    }
    let files = fs::read_dir(daemon.agent_dir(&id).join("stdout")).unwrap();
    let segments = files
        .flatten()
        .filter(|file| file.path().extension().is_some_and(|e| e == "log"));
    assert!(segments.count() >= 3, "new agents use small segments");

    // A file with a mistake changes nothing, and the error message has the position of the mistake.
    write_settings(
        &daemon,
        "[profile.say]\nprogram = \"echo\"\nrestart = \"sometimes\"\n",
    );
    let refused = daemon.cli(&["config", "reload"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused.stderr).contains("colibri.toml:3:11: unknown variant `sometimes`"),
        "{}",
        text(&refused.stderr)
    );
    let answer = daemon.connect().call("reload-config", json!({}));
    assert_eq!(
        answer["error"]["data"]["kind"], "invalid-config",
        "{answer}"
    );
    send_hangup(&daemon);
    wait_until("each refused reload is logged with the position", || {
        daemon.log().matches("colibri.toml:3:11").count() == 3
    });
    assert_eq!(daemon.cli_ok(&["run", "--profile", "say"]), "two\n");

    // SIGHUP retries agents that could not be started and does not touch running ones.
    let before = wait_for_running(&daemon, "existing");
    let script = "#!/bin/sh\nexec sleep 1000\n";
    write_file(&daemon.path("missing"), script, 0o755);
    write_settings(
        &daemon,
        &changed.replace("args = [\"1000\"]", "args = [\"2000\"]"),
    );
    send_hangup(&daemon);
    wait_for_running(&daemon, "missing");
    let after = agents_named(&daemon, "existing");
    assert_eq!((after.len(), &after[0]["pid"]), (1, &before["pid"]));
    let reloads = || {
        let audit = fs::read_to_string(daemon.state().join("audit.jsonl")).unwrap();
        audit.matches("\"reload-config\"").count()
    };
    // The daemon starts the agents of a reload before it writes the audit record.
    wait_until("the reload is audited", || reloads() >= 5);
    assert_eq!(reloads(), 5);
    // Each reload reports the changed setting until the daemon restarts.
    let message = daemon.cli_ok(&["config", "reload"]);
    assert!(
        message.contains("need a restart of the daemon: helper"),
        "{message}"
    );
    daemon.kill();
    daemon.launch();
    let message = daemon.cli_ok(&["config", "reload"]);
    assert!(message.contains("no changes"), "{message}");
}

#[test]
fn config_check_and_daemon_report_the_same_diagnostics() {
    let daemon = Daemon::prepare();
    fs::remove_file(daemon.path(".config/colibri/colibri.toml")).unwrap();
    let message = daemon.cli_ok(&["config", "check"]);
    assert_eq!(message, "", "without a file stdout is empty");
    write_settings(&daemon, REVIEW);
    let message = daemon.cli_ok(&["config", "check"]);
    assert!(message.contains("profiles: review"), "{message}");
    let other = daemon.path("other.toml");
    fs::write(
        &other,
        "stat_dir = \"/x\"\nprivilege = \"sudo\"\n[profile.a]\nenv = { TOKEN = 5 }\nruntime = \"pie\"\n[[autostart]]\nprofile = \"b\"\n",
    )
    .unwrap();
    let checked = daemon
        .command("colibri")
        .args(["config", "check", "--config"])
        .arg(&other)
        .output()
        .unwrap();
    let started = daemon
        .command("colibri-daemon")
        .arg("--config")
        .arg(&other)
        .output()
        .unwrap();
    assert_eq!(
        (checked.status.code(), started.status.code()),
        (Some(1), Some(1))
    );
    let mistakes = |output: &[u8]| text(output).split_once('\n').unwrap().1.to_owned();
    assert_eq!(mistakes(&checked.stderr), mistakes(&started.stderr));
    insta::assert_snapshot!(text(&checked.stderr).replace(other.to_str().unwrap(), "FILE"));
    fs::write(&other, "\nprivilege = \"sudo\"\n").unwrap();
    for (program, option) in [
        ("colibri", &["config", "check", "--config"][..]),
        ("colibri-daemon", &["--config"]),
    ] {
        let output = daemon
            .command(program)
            .args(option)
            .arg(&other)
            .output()
            .unwrap();
        assert!(
            text(&output.stderr).contains("other.toml:2:13: ")
                && text(&output.stderr).contains("helper, mdo, none"),
            "{}",
            text(&output.stderr)
        );
    }
    write_file(&daemon.path("env"), "A=1\n", 0o644);
    fs::write(
        &other,
        format!(
            "[profile.a]\nenv_file = \"{}\"\n",
            daemon.path("env").display()
        ),
    )
    .unwrap();
    let output = daemon
        .command("colibri")
        .args(["config", "check", "--config"])
        .arg(&other)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("other.toml:2:12: ")
            && text(&output.stderr).contains("chmod 600"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn no_jail_is_announced_and_refused_with_a_jail_of_a_profile() {
    let mut daemon = Daemon::prepare();
    write_settings(&daemon, &format!("{REVIEW}[profile.plain]\n"));
    daemon.launch();
    let plain = ["run", "--no-jail", "--profile", "plain", "--", "echo", "x"];
    let output = daemon.cli(&plain);
    assert_eq!(text(&output.stdout), "x\n");
    assert!(text(&output.stderr).contains("the agent has no jail (--no-jail)"));
    for command in ["run", "spawn", "explain"] {
        let output = daemon.cli(&[command, "--no-jail", "--profile", "review"]);
        let message = text(&output.stderr);
        assert!(!output.status.success(), "{command}");
        assert!(
            message.contains("cannot remove the jail of the profile"),
            "{message}"
        );
    }
}

#[test]
fn defaults_choose_the_jail_and_invalid_ones_are_refused() {
    let daemon = Daemon::prepare();
    let explain = |settings: &str| {
        write_settings(&daemon, settings);
        let output = daemon.cli(&["explain", "--", "true"]);
        text(&output.stdout) + &text(&output.stderr)
    };
    for (settings, part) in [
        (
            "[defaults]\njail = { path = \"/\", hostname = \"of-defaults\" }\n",
            "of-defaults",
        ),
        ("[defaults]\nno_jail = true\n", "true"),
        (
            "[defaults]\njail = { view = \"host\" }\n",
            "no effect without a root",
        ),
        (
            "[defaults]\nno_jail = true\njail = { path = \"/\" }\n",
            "no effect beside no_jail",
        ),
    ] {
        let shown = explain(settings);
        assert!(shown.contains(part), "{settings}: {shown}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn environment_file_of_a_reloaded_profile_is_masked() {
    let outside = tempfile::tempdir_in("/var/tmp").unwrap();
    let directory = outside.path().canonicalize().unwrap();
    let file = directory.join("secret.env");
    write_file(&file, "TOKEN=token-of-the-file\n", 0o600);
    let daemon = Daemon::start();
    let mount = format!("{}:ro", directory.display());
    let read = || {
        let file = file.to_str().unwrap();
        let options = ["--jail-path", "/", "--mount", &mount, "--", "cat", file];
        text(&daemon.cli(&[&["run"], &options[..]].concat()).stdout)
    };
    assert!(read().contains("token-of-the-file"), "an ordinary file");
    write_settings(
        &daemon,
        &format!("[profile.p]\nenv_file = \"{}\"\n", file.display()),
    );
    daemon.cli_ok(&["config", "reload"]);
    assert_eq!(read(), "");
}
