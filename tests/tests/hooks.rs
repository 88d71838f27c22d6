//! Hooks run once per state that they select, and get an agent's output only as data.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use colibri_tests::{Daemon, eventually, processes_with, wait_until, write_file};
use serde_json::{Value, json};

/// Event of pi that puts the agent into the state `blocked`.
const BLOCKS: &str = r#"{"type":"extension_ui_request","id":"1","method":"confirm"}"#;
/// Event of pi that puts the agent into the state `working`.
const WORKS: &str = r#"{"type":"agent_start"}"#;

/// Prepares a daemon with a hook for these states. The hook records its input and then runs the shell commands `then`.
fn prepare_with_hook(on: &str, then: &str) -> Daemon {
    let daemon = Daemon::prepare();
    let hook_runs = daemon.path("runs");
    fs::create_dir(&hook_runs).unwrap();
    // Each run writes a separate file, renamed when complete.
    let script = format!(
        "#!/bin/sh\nset -e\nfile={hook_runs}/$COLIBRI_AGENT_ID.$COLIBRI_STATE.$$\n{{ cat; env -0; }} >$file.tmp\nmv $file.tmp $file.run\n{then}\n",
        hook_runs = hook_runs.display()
    );
    let program = daemon.path("hook");
    write_file(&program, &script, 0o755);
    let settings = format!(
        "[[hook]]\non = {on}\ncommand = [\"{}\", \"$HOME; `id`\"]\ntimeout_ms = 10000\n",
        program.display()
    );
    fs::write(daemon.path("colibri.toml"), settings).unwrap();
    daemon
}

/// Starts the daemon with the hook, and with a secret in its environment.
fn launch(daemon: &mut Daemon) {
    let mut command = daemon.command("colibri-daemon");
    command
        .arg("--config")
        .arg(daemon.path("colibri.toml"))
        .env("SECRET", "daemon-only");
    daemon.launch_command(command);
}

/// Fields of the JSON object on a hook's stdin, in the order of colibri-daemon(8).
const EVENT_FIELDS: [&str; 12] = [
    "time",
    "event",
    "id",
    "name",
    "state",
    "previous_state",
    "merged",
    "run",
    "current_tool",
    "error",
    "exit_code",
    "exit_signal",
];

/// The input of one run of the hook.
#[derive(Debug)]
struct HookRun {
    event: Value,
    environment: BTreeMap<String, String>,
}

/// Returns all runs of the hook for an agent and a state.
fn hook_runs(daemon: &Daemon, id: &str, state: &str) -> Vec<HookRun> {
    let mut runs = Vec::new();
    for entry in fs::read_dir(daemon.path("runs")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if !name.starts_with(&format!("{id}.{state}.")) || !name.ends_with(".run") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let (event, environment) = text.split_once('\n').unwrap();
        let positions = EVENT_FIELDS.map(|field| event.find(&format!("\"{field}\":")).unwrap());
        assert!(positions.is_sorted(), "{event}");
        let environment = environment
            .split_terminator('\0')
            .map(|variable| variable.split_once('=').unwrap())
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        runs.push(HookRun {
            event: serde_json::from_str(event).unwrap(),
            environment,
        });
    }
    runs
}

/// Waits for a run of the hook and checks that it is the only one for the agent and the state.
fn single_run(daemon: &Daemon, id: &str, state: &str) -> HookRun {
    let mut runs = eventually("the hook runs", || {
        Some(hook_runs(daemon, id, state)).filter(|runs| !runs.is_empty())
    });
    assert_eq!(runs.len(), 1, "{id} {state}: {runs:?}");
    runs.remove(0)
}

/// Starts an imitation of pi that asks a question and ends when it is answered.
fn spawn_asking_agent(daemon: &Daemon, name: &str, error: &str) -> String {
    let script = format!(
        "echo '{WORKS}'; printf '%s\\n' '{error}'; echo '{BLOCKS}'; read answer; echo '{WORKS}'; exit 3"
    );
    daemon.spawn(&["--name", name, "--runtime", "pi", "--", "sh", "-c", &script])
}

#[test]
fn blocked_agent_runs_the_hook_once_without_a_shell() {
    let mut daemon = prepare_with_hook(r#"["blocked", "error"]"#, "");
    launch(&mut daemon);
    let injected = daemon.path("injected");
    let error = format!(
        r#"{{"type":"error","error":"$(touch {0})`touch {0}`; touch {0}\nCOLIBRI_STATE=done\u0000\u001b[2J"}}"#,
        injected.display()
    );
    let name = format!("n $(touch {})", injected.display());
    let id = spawn_asking_agent(&daemon, &name, &error);
    let HookRun { event, environment } = single_run(&daemon, &id, "blocked");
    assert_eq!(event["event"], "state");
    assert_eq!(
        (&event["id"], &event["state"]),
        (&json!(id), &json!("blocked"))
    );
    // Earlier states of the same burst are coalesced.
    assert!(
        ["starting", "working"].contains(&event["previous_state"].as_str().unwrap()),
        "{event}"
    );
    assert_eq!(event["name"], name);
    let message = event["error"].as_str().unwrap();
    assert!(message.ends_with(" COLIBRI_STATE=done"), "{message}");
    assert!(!message.contains(char::is_control), "{message:?}");
    assert_eq!(environment["COLIBRI_AGENT_ID"], id);
    assert_eq!(
        environment["COLIBRI_AGENT_NAME"],
        event["name"].as_str().unwrap()
    );
    assert_eq!(environment["COLIBRI_STATE"], "blocked");
    assert_eq!(environment["COLIBRI_ERROR"], message);
    assert_eq!(
        environment["COLIBRI_SOCKET"],
        daemon.socket().to_str().unwrap()
    );
    assert_eq!(environment.get("SECRET"), None);

    daemon.cli_ok(&["send", &id, "yes"]);
    let HookRun { event, environment } = single_run(&daemon, &id, "error");
    assert_eq!(
        (&event["exit_code"], &event["exit_signal"]),
        (&json!(3), &Value::Null)
    );
    assert_eq!(environment["COLIBRI_EXIT_CODE"], "3");
    // Hooks run in order, so a repeated run for `blocked` would precede the run for `error`.
    single_run(&daemon, &id, "blocked");
    assert!(hook_runs(&daemon, &id, "working").is_empty());
    assert!(!injected.exists());
    // The record of reported states is removed with the agent.
    daemon.cli_ok(&["rm", &id]);
    assert!(!daemon.agent_dir(&id).exists());
}

#[test]
fn next_daemon_runs_missed_hooks_exactly_once() {
    let mut daemon = prepare_with_hook(r#"["blocked", "done", "error"]"#, "");
    // Agents that are older than the hook.
    daemon.launch();
    let old_ended = daemon.spawn(&["--", "true"]);
    daemon.cli_ok(&["wait", &old_ended]);
    let old_blocked = spawn_asking_agent(&daemon, "old", "{}");
    wait_until("the agent is blocked", || {
        daemon.agent(&old_blocked)["state"] == "blocked"
    });
    assert!(daemon.terminate());

    launch(&mut daemon);
    let blocked = spawn_asking_agent(&daemon, "blocked", "{}");
    single_run(&daemon, &blocked, "blocked");
    let go = daemon.path("go");
    let wait = format!("until [ -e {} ]; do sleep 0.02; done", go.display());
    let create = |name: &str| format!("echo >{}", daemon.path(name).display());
    // An agent that asks, works while no daemon runs, and asks again.
    let script = format!(
        "echo '{BLOCKS}'; {wait}; echo '{WORKS}'; echo '{BLOCKS}'; {}; sleep 1000",
        create("again.asked")
    );
    let asks_again = daemon.spawn(&["--runtime", "pi", "--", "sh", "-c", &script]);
    single_run(&daemon, &asks_again, "blocked");
    let script = format!(
        "echo '{WORKS}'; {wait}; echo '{BLOCKS}'; {}; sleep 1000",
        create("first.asked")
    );
    let asks_later = daemon.spawn(&["--runtime", "pi", "--", "sh", "-c", &script]);
    let ends_later = daemon.spawn(&["--", "sh", "-c", &format!("{wait}; exit 5")]);
    let ended = daemon.spawn(&["--", "false"]);
    single_run(&daemon, &ended, "error");
    // The next daemon compares states with the record of reported ones.
    let record = |id: &str| daemon.agent_dir(id).join("hook.json");
    for id in [&asks_later, &ends_later] {
        wait_until("the hooks have recorded it", || record(id).exists());
    }
    daemon.kill();
    fs::write(&go, "").unwrap();
    for name in ["again.asked", "first.asked"] {
        wait_until("the agent has asked its question", || {
            daemon.path(name).exists()
        });
    }
    let exit = daemon.agent_dir(&ends_later).join("exit.json");
    wait_until("the agent has ended", || exit.exists());

    launch(&mut daemon);
    single_run(&daemon, &asks_later, "blocked");
    let HookRun { event, .. } = single_run(&daemon, &ends_later, "error");
    assert_eq!(event["exit_code"], 5);
    wait_until("the new question is reported", || {
        hook_runs(&daemon, &asks_again, "blocked").len() == 2
    });

    // The third daemon reports no old state. Hooks run in order, so a repeated run would precede that for a new agent.
    assert!(daemon.terminate());
    launch(&mut daemon);
    let newest = daemon.spawn(&["--", "true"]);
    single_run(&daemon, &newest, "done");
    for id in [&blocked, &asks_later] {
        single_run(&daemon, id, "blocked");
    }
    single_run(&daemon, &ends_later, "error");
    single_run(&daemon, &ended, "error");
    assert_eq!(hook_runs(&daemon, &asks_again, "blocked").len(), 2);
    assert!(
        hook_runs(&daemon, &old_ended, "done").is_empty(),
        "the agent is older than the hook"
    );
    assert!(
        hook_runs(&daemon, &old_blocked, "blocked").is_empty(),
        "the agent is older than the hook"
    );
    // The next state of an older agent is reported.
    daemon.cli_ok(&["send", &old_blocked, "yes"]);
    single_run(&daemon, &old_blocked, "error");
}

#[test]
fn flood_of_changes_is_coalesced_and_the_end_reported() {
    let mut daemon = prepare_with_hook(r#"["blocked", "done"]"#, "");
    launch(&mut daemon);
    let script = format!(
        "i=0; while [ $i -lt 40000 ]; do echo '{BLOCKS}'; echo '{WORKS}'; i=$((i+1)); done"
    );
    let started = Instant::now();
    let id = daemon.spawn(&["--runtime", "pi", "--", "sh", "-c", &script]);
    single_run(&daemon, &id, "done");
    let blocked = hook_runs(&daemon, &id, "blocked").len() as u64;
    // The rate limit is one run per second.
    let max = 2 + started.elapsed().as_secs();
    assert!(blocked <= max, "{blocked} runs, at most {max}");
}

#[test]
fn hanging_hook_is_killed_and_delays_no_other_hook() {
    let hang = "sleep 1234 &\necho stuck on purpose >&2\n[ $COLIBRI_AGENT_NAME != hangs ] || wait";
    let mut daemon = prepare_with_hook(r#"["blocked"]"#, hang);
    let settings = fs::read_to_string(daemon.path("colibri.toml")).unwrap();
    fs::write(
        daemon.path("colibri.toml"),
        settings.replace("10000", "700"),
    )
    .unwrap();
    launch(&mut daemon);
    let id = spawn_asking_agent(&daemon, "hangs", "{}");
    single_run(&daemon, &id, "blocked");
    // No command waits for the hook.
    daemon.cli_ok(&["ps"]);
    daemon.cli_ok(&["send", &id, "yes"]);
    daemon.wait(&id);
    wait_until("the hook is killed", || {
        daemon
            .log()
            .contains("hook exceeded its timeout; killing it")
    });
    assert!(
        daemon.log().contains("stuck on purpose"),
        "{}",
        daemon.log()
    );
    wait_until("the processes of the hook have ended", || {
        processes_with(&format!("COLIBRI_AGENT_ID={id}")).is_empty()
    });
}

#[test]
fn failing_hook_is_logged() {
    let mut daemon = prepare_with_hook(r#"["done"]"#, "echo 'no bell \u{1b}[2J here' >&2; exit 9");
    let settings = fs::read_to_string(daemon.path("colibri.toml")).unwrap();
    let missing = "[[hook]]\non = [\"done\"]\ncommand = [\"/nowhere/bell\"]\n";
    fs::write(daemon.path("colibri.toml"), settings + missing).unwrap();
    launch(&mut daemon);
    let id = daemon.spawn(&["--", "true"]);
    single_run(&daemon, &id, "done");
    wait_until("both failures are logged", || {
        let log = daemon.log();
        let failed = log.contains("hook failed") && log.contains("no bell  [2J here");
        failed && log.contains("cannot run hook") && log.contains("/nowhere/bell")
    });
    daemon.cli_ok(&["ps"]);
}
