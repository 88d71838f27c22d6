//! Hooks run once per requested state and treat an agent's output as data.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use colibri_tests::{Daemon, eventually, processes_with};
use serde_json::{Value, json};

const BLOCKS: &str = r#"{"type":"extension_ui_request","id":"1","method":"confirm"}"#;
const WORKS: &str = r#"{"type":"agent_start"}"#;

/// Creates a daemon whose hook records its input for these states; `more` is appended to the hook's script.
fn daemon_with_hook(on: &str, more: &str) -> Daemon {
    let daemon = Daemon::prepare();
    let hook_runs = daemon.path("runs");
    fs::create_dir(&hook_runs).unwrap();
    // Each run writes a separate file, renamed when complete.
    let script = format!(
        "#!/bin/sh\nset -e\nfile={hook_runs}/$COLIBRI_AGENT_ID.$COLIBRI_STATE.$$\n{{ cat; env -0; }} >$file.tmp\nmv $file.tmp $file.run\n{more}\n",
        hook_runs = hook_runs.display()
    );
    let program = daemon.path("hook");
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let settings = format!(
        "[[hook]]\non = {on}\ncommand = [\"{}\", \"$HOME; `id`\"]\ntimeout_ms = 10000\n",
        program.display()
    );
    fs::write(daemon.path("colibri.toml"), settings).unwrap();
    daemon
}

fn launch(daemon: &mut Daemon) {
    let mut command = daemon.command("colibri-daemon");
    command
        .arg("--config")
        .arg(daemon.path("colibri.toml"))
        .env("SECRET", "daemon-only");
    daemon.launch_as(command);
}

/// Returns the JSON and the environment of each hook run for that agent and state.
fn hook_runs(daemon: &Daemon, id: &str, state: &str) -> Vec<(Value, BTreeMap<String, String>)> {
    let mut runs = Vec::new();
    for entry in fs::read_dir(daemon.path("runs")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if !name.starts_with(&format!("{id}.{state}.")) || !name.ends_with(".run") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let (event, environment) = text.split_once('\n').unwrap();
        let environment = environment
            .split_terminator('\0')
            .map(|variable| variable.split_once('=').unwrap())
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        runs.push((serde_json::from_str(event).unwrap(), environment));
    }
    runs
}

fn single_run(daemon: &Daemon, id: &str, state: &str) -> (Value, BTreeMap<String, String>) {
    let mut runs = eventually("the hook runs", || {
        Some(hook_runs(daemon, id, state)).filter(|runs| !runs.is_empty())
    });
    assert_eq!(runs.len(), 1, "{id} {state}: {runs:?}");
    runs.remove(0)
}

/// Starts an imitation of pi that asks a question, and ends as soon as it is answered.
fn asking_agent(daemon: &Daemon, name: &str, error: &str) -> String {
    let script = format!(
        "echo '{WORKS}'; printf '%s\\n' '{error}'; echo '{BLOCKS}'; read answer; echo '{WORKS}'; exit 3"
    );
    daemon.spawn(&["--name", name, "--runtime", "pi", "--", "sh", "-c", &script])
}

#[test]
fn blocked_agent_runs_the_hook_once_without_a_shell() {
    let mut daemon = daemon_with_hook(r#"["blocked", "error"]"#, "");
    launch(&mut daemon);
    let marker = daemon.path("pwned");
    let error = format!(
        r#"{{"type":"error","error":"$(touch {0})`touch {0}`; touch {0}\nCOLIBRI_STATE=done\u0000\u001b[2J"}}"#,
        marker.display()
    );
    let name = format!("n $(touch {})", marker.display());
    let id = asking_agent(&daemon, &name, &error);
    let (event, environment) = single_run(&daemon, &id, "blocked");
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

    daemon.ok(&["send", &id, "yes"]);
    let (event, environment) = single_run(&daemon, &id, "error");
    assert_eq!(
        (&event["exit_code"], &event["exit_signal"]),
        (&json!(3), &Value::Null)
    );
    assert_eq!(environment["COLIBRI_EXIT_CODE"], "3");
    // A repeated notification would have arrived by now.
    single_run(&daemon, &id, "blocked");
    assert!(hook_runs(&daemon, &id, "working").is_empty());
    assert!(!marker.exists());
    // The hook record is removed with the agent.
    daemon.ok(&["rm", &id]);
    assert!(!daemon.agent_dir(&id).exists());
}

#[test]
fn next_daemon_runs_missed_hooks_exactly_once() {
    let mut daemon = daemon_with_hook(r#"["blocked", "done", "error"]"#, "");
    // Agents from before hooks were configured.
    daemon.launch();
    let old = daemon.spawn(&["--", "true"]);
    daemon.ok(&["wait", &old]);
    let blocked_before = asking_agent(&daemon, "old", "{}");
    eventually("it is blocked", || {
        (daemon.agent(&blocked_before)["state"] == "blocked").then_some(())
    });
    assert!(daemon.terminate());

    launch(&mut daemon);
    let stays = asking_agent(&daemon, "stays", "{}");
    single_run(&daemon, &stays, "blocked");
    let go = daemon.path("go");
    let waits = format!("until [ -e {} ]; do sleep 0.02; done", go.display());
    let done = |name: &str| format!("echo >{}", daemon.path(name).display());
    // Asks, is reported, works while no daemon runs, and asks again.
    let script = format!(
        "echo '{BLOCKS}'; {waits}; echo '{WORKS}'; echo '{BLOCKS}'; {}; sleep 1000",
        done("again.done")
    );
    let again = daemon.spawn(&["--runtime", "pi", "--", "sh", "-c", &script]);
    single_run(&daemon, &again, "blocked");
    let script = format!(
        "echo '{WORKS}'; {waits}; echo '{BLOCKS}'; {}; sleep 1000",
        done("first.done")
    );
    let first = daemon.spawn(&["--runtime", "pi", "--", "sh", "-c", &script]);
    let ends = daemon.spawn(&["--", "sh", "-c", &format!("{waits}; exit 5")]);
    let ended = daemon.spawn(&["--", "false"]);
    single_run(&daemon, &ended, "error");
    // Hooks have recorded it, so later daemons know its state.
    let seen = |id: &str| daemon.agent_dir(id).join("hook.json");
    for id in [&first, &ends] {
        eventually("the hooks have recorded it", || {
            seen(id).exists().then_some(())
        });
    }
    daemon.kill();
    fs::write(&go, "").unwrap();
    for name in ["again.done", "first.done"] {
        eventually("it has asked its question", || {
            daemon.path(name).exists().then_some(())
        });
    }
    let exit = daemon.agent_dir(&ends).join("exit.json");
    eventually("it has ended", || exit.exists().then_some(()));

    launch(&mut daemon);
    single_run(&daemon, &first, "blocked");
    let (event, _) = single_run(&daemon, &ends, "error");
    assert_eq!(event["exit_code"], 5);
    eventually("the new question is reported", || {
        (hook_runs(&daemon, &again, "blocked").len() == 2).then_some(())
    });

    // A third daemon reports no old state: hooks run in order, so the last report comes after any repetition.
    assert!(daemon.terminate());
    launch(&mut daemon);
    let last = daemon.spawn(&["--", "true"]);
    single_run(&daemon, &last, "done");
    for id in [&stays, &first] {
        single_run(&daemon, id, "blocked");
    }
    single_run(&daemon, &ends, "error");
    single_run(&daemon, &ended, "error");
    assert_eq!(hook_runs(&daemon, &again, "blocked").len(), 2);
    assert!(
        hook_runs(&daemon, &old, "done").is_empty(),
        "older than the hooks"
    );
    assert!(
        hook_runs(&daemon, &blocked_before, "blocked").is_empty(),
        "older than the hooks"
    );
    // Its next change is reported.
    daemon.ok(&["send", &blocked_before, "yes"]);
    single_run(&daemon, &blocked_before, "error");
}

#[test]
fn flood_of_changes_is_coalesced_and_the_end_reported() {
    let mut daemon = daemon_with_hook(r#"["blocked", "done"]"#, "");
    launch(&mut daemon);
    let script = format!(
        "i=0; while [ $i -lt 40000 ]; do echo '{BLOCKS}'; echo '{WORKS}'; i=$((i+1)); done"
    );
    let began = Instant::now();
    let id = daemon.spawn(&["--runtime", "pi", "--", "sh", "-c", &script]);
    single_run(&daemon, &id, "done");
    let blocked = hook_runs(&daemon, &id, "blocked").len() as u64;
    // At most one run a second.
    let most = 2 + began.elapsed().as_secs();
    assert!(blocked <= most, "{blocked} notifications, {most} at most");
}

#[test]
fn hanging_hook_is_killed_and_delays_no_other_hook() {
    let hangs = "sleep 1234 &\necho stuck on purpose >&2\n[ $COLIBRI_AGENT_NAME != hangs ] || wait";
    let mut daemon = daemon_with_hook(r#"["blocked"]"#, hangs);
    let settings = fs::read_to_string(daemon.path("colibri.toml")).unwrap();
    fs::write(
        daemon.path("colibri.toml"),
        settings.replace("10000", "700"),
    )
    .unwrap();
    launch(&mut daemon);
    let id = asking_agent(&daemon, "hangs", "{}");
    single_run(&daemon, &id, "blocked");
    // Nothing waits for the hook.
    daemon.ok(&["ps"]);
    daemon.ok(&["send", &id, "yes"]);
    daemon.cli(&["wait", &id]);
    eventually("it is killed", || {
        daemon
            .log()
            .contains("hook exceeded its timeout; killing it")
            .then_some(())
    });
    assert!(
        daemon.log().contains("stuck on purpose"),
        "{}",
        daemon.log()
    );
    eventually("its processes have ended", || {
        processes_with(&format!("COLIBRI_AGENT_ID={id}"))
            .is_empty()
            .then_some(())
    });
}

#[test]
fn failing_hook_is_logged() {
    let mut daemon = daemon_with_hook(r#"["done"]"#, "echo 'no bell \u{1b}[2J here' >&2; exit 9");
    let settings = fs::read_to_string(daemon.path("colibri.toml")).unwrap();
    let missing = "[[hook]]\non = [\"done\"]\ncommand = [\"/nowhere/bell\"]\n";
    fs::write(daemon.path("colibri.toml"), settings + missing).unwrap();
    launch(&mut daemon);
    let id = daemon.spawn(&["--", "true"]);
    single_run(&daemon, &id, "done");
    eventually("both are logged", || {
        let log = daemon.log();
        let failed = log.contains("hook failed") && log.contains("no bell  [2J here");
        (failed && log.contains("cannot run hook") && log.contains("/nowhere/bell")).then_some(())
    });
    daemon.ok(&["ps"]);
}
