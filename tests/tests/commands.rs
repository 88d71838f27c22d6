//! Commands for several agents, the order of lists, exit codes of Colibri, and prompts with answers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fmt::Write;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use colibri_tests::{Daemon, text, wait_until, write_file};
use serde_json::Value;

#[test]
fn failed_start_has_the_exit_code_of_a_shell() {
    let daemon = Daemon::start();
    let create_script = |name: &str, text: &str, mode: u32| {
        let path = daemon.path(name);
        write_file(&path, text, mode);
        path.display().to_string()
    };
    let not_executable = create_script("not-executable", "#!/bin/sh\n", 0o644);
    let no_interpreter = create_script("no-interpreter", "#!/no/such/interpreter -x\n", 0o755);
    let executable = create_script("executable", "#!/bin/sh\nexit 9\n", 0o755);
    let hidden = tempfile::Builder::new()
        .prefix("colibri-private-")
        .tempfile_in("/tmp")
        .unwrap();
    fs::set_permissions(hidden.path(), Permissions::from_mode(0o755)).unwrap();
    let hidden = hidden.path().to_str().unwrap();
    let long_argument = "x".repeat(131_072);
    let many_arguments = vec!["x"; 50_000];
    let sandbox = ["--jail-path", "/", "--view", "host"];
    let rows: Vec<(&[&str], Vec<&str>, i32, &str)> = vec![
        (
            &[],
            vec!["/no/such/program"],
            127,
            "was not found on this host; pass the path",
        ),
        (
            &[],
            vec!["no-such-program"],
            127,
            "was not found on this host in PATH",
        ),
        (
            &sandbox,
            vec!["/no/such/program"],
            127,
            "was not found under /",
        ),
        (
            &sandbox,
            vec![hidden],
            127,
            "a private /tmp, which hides the host's; mount it with --mount /tmp/",
        ),
        (
            &[],
            vec![&not_executable],
            126,
            "no execute permission (mode 0644); run: chmod +x",
        ),
        (
            &sandbox,
            vec![&not_executable],
            126,
            "no execute permission",
        ),
        (
            &[],
            vec![&no_interpreter],
            126,
            "interpreter \"/no/such/interpreter\" does not exist on this host",
        ),
        (
            &sandbox,
            vec![&no_interpreter],
            126,
            "\"/no/such/interpreter\" does not exist under /",
        ),
        (&[], vec!["/etc"], 126, "it is a directory"),
        (&[], vec![&executable], 9, ""),
        (&sandbox, vec![&executable], 9, ""),
        (
            &["--cwd", "/no/such"],
            vec!["true"],
            125,
            "working directory",
        ),
        (
            &["--workspace", "/etc"],
            vec!["true"],
            125,
            "--workspace needs a jail; add --jail-path, or remove --workspace",
        ),
        (
            &["--mount", "/etc:/tmp/x"],
            vec!["true"],
            125,
            "--mount or --workspace needs a jail; add --jail-path, or remove --mount or --workspace",
        ),
        (
            &["--jail-path", "/", "--cwd", "/tmp/x"],
            vec!["true"],
            125,
            "a private /tmp",
        ),
        (
            &[],
            vec!["true", &long_argument],
            125,
            "an argument has 131072 bytes, more than the 131071",
        ),
        (
            &sandbox,
            [&["true"], &many_arguments[..]].concat(),
            125,
            "arguments exceed the 9000 that bwrap(1) accepts",
        ),
        (&["--wall-time", "100"], vec!["true"], 0, ""),
        (
            &["--mount", "/etc:/tmp/x:rx"],
            vec!["true"],
            2,
            "unknown option \"rx\"",
        ),
    ];
    for (options, command, code, expected) in rows {
        // execve(2) refuses this argument for colibri, too, so the request is sent to the socket.
        if command.contains(&long_argument.as_str()) {
            let answer = daemon.connect().call(
                "spawn-agent",
                serde_json::json!({"program": command[0], "args": &command[1..]}),
            );
            let message = answer["error"]["message"].as_str().unwrap();
            assert!(message.contains(expected), "{message}");
            continue;
        }
        let args = [&["run"], options, &["--"], &command].concat();
        let output = daemon.cli(&args);
        let message = text(&output.stderr);
        let shown = &args[..args.len().min(8)];
        assert_eq!(output.status.code(), Some(code), "{shown:?}: {message}");
        assert!(message.contains(expected), "{shown:?}: {message}");
    }
    // Without a daemon the exit code is 3, not 125.
    let not_running = Daemon::prepare();
    for command in [&["run", "--", "true"][..], &["wait", "x"], &["attach", "x"]] {
        assert_eq!(
            not_running.cli(command).status.code(),
            Some(3),
            "{command:?}"
        );
    }
}

#[test]
fn exit_reason_is_shown_by_every_command() {
    let daemon = Daemon::start();
    let spawn = |name: &str, options: &[&str], script: &str| {
        daemon.spawn(&[&["--name", name], options, &["--", "sh", "-c", script]].concat())
    };
    let killed = spawn("killed", &[], "exec sleep 1000");
    let timed_out = spawn("late", &["--wall-time", "100ms"], "exec sleep 1000");
    let failed = spawn("failed", &[], "exit 7");
    let signalled = spawn("signalled", &[], "kill -9 $$");
    daemon.cli_ok(&["kill", "--grace", "0s", &killed]);
    for (id, expected, reason, note) in [
        (&killed, 137, "killed", "was killed by a user"),
        (&timed_out, 143, "wall time", "wall"),
        (&failed, 7, "code 7", ""),
        (&signalled, 137, "signal 9", ""),
    ] {
        let waited = daemon.cli(&["wait", id]);
        let message = text(&waited.stderr);
        assert!(message.contains(note), "{reason}: {message}");
        // With a grace of 0 s, either TERM or KILL ends the agent.
        let code = waited.status.code().unwrap();
        assert!(
            code == expected || (id == &killed && code == 143),
            "{reason}: {code}"
        );
        let listed = daemon.cli_ok(&["ps"]);
        let row = listed.lines().find(|line| line.starts_with(id.as_str()));
        assert!(row.unwrap().contains(&format!("  {reason} ")), "{listed}");
        assert!(
            daemon
                .cli_ok(&["status", id])
                .contains(&format!("({reason}")),
            "{reason}"
        );
        let shown = daemon.cli_ok(&["events", id]);
        assert!(shown.contains(&format!("exit    {reason}")), "{shown}");
    }
    let status = daemon.cli_ok(&["status", &killed]);
    assert!(status.contains("state       done"), "{status}");
}

#[test]
fn several_agents_are_handled_and_each_failure_reported() {
    let daemon = Daemon::start();
    let spawn =
        |name: &str, script: &str| daemon.spawn(&["--name", name, "--", "sh", "-c", script]);
    let ids = [
        ("FIRST", spawn("first", "exec sleep 1000")),
        ("SECOND", spawn("second", "exec sleep 1000")),
        ("THIRD", spawn("third", "exit 3")),
        ("FOURTH", spawn("fourth", "exit 4")),
    ];
    daemon.cli(&["wait", "third", "fourth"]);
    let mut shown = String::new();
    for words in [
        &["wait", "third", "fourth"][..],
        &["wait", "fourth", "third"],
        &["wait", "missing", "third"],
        &["rm", "first", "missing", "third"],
        &["kill", "missing", "first", "second"],
        &["kill", "first", "second"],
        &["rm", "first", "second"],
        &["ps", "-q"],
        &["status", "missing", "fourth", "absent"],
    ] {
        let output = daemon.cli(words);
        writeln!(shown, "$ colibri {}", words.join(" ")).unwrap();
        let without_times: String = text(&output.stdout)
            .lines()
            .filter(|line| !line.starts_with("started") && !line.starts_with("ended "))
            .map(|line| format!("{line}\n"))
            .collect();
        write!(shown, "{without_times}{}", text(&output.stderr)).unwrap();
        writeln!(shown, "exit code {}\n", output.status.code().unwrap()).unwrap();
    }
    for (placeholder, id) in &ids {
        shown = shown.replace(id.as_str(), placeholder);
    }
    insta::assert_snapshot!(shown);
}

#[test]
fn lists_have_running_agents_first_and_prune_removes_ended_ones() {
    let daemon = Daemon::start();
    let spawn_ended = |text: &str| {
        let id = daemon.spawn(&["--", "echo", text]);
        daemon.cli_ok(&["wait", &id]);
        id
    };
    let spawn_running = |seconds: &str| daemon.spawn(&["--", "sleep", seconds]);
    let old = spawn_ended("one");
    let first = spawn_running("1001");
    let new = spawn_ended("three");
    let second = spawn_running("1002");
    let ids = |options: &[&str]| -> Vec<String> {
        let listed = daemon.cli_ok(&[&["ps", "-q"], options].concat());
        listed.lines().map(str::to_owned).collect()
    };
    assert_eq!(ids(&[]), [&second, &first, &new, &old].map(Clone::clone));
    assert_eq!(ids(&["--running"]), [second.clone(), first.clone()]);
    assert_eq!(
        ids(&["--last", "3"]),
        [&second, &first, &new].map(Clone::clone)
    );
    let json: Value =
        serde_json::from_str(&daemon.cli_ok(&["ps", "--json", "--last", "1"])).unwrap();
    assert_eq!(json[0]["id"], second);

    // No agent has ended that long ago.
    let output = daemon.cli(&["prune", "--older-than", "1h"]);
    assert_eq!(
        text(&output.stderr),
        "colibri: removed 0 ended agents with 0B of output\n"
    );
    let dry_run = daemon.cli(&["prune", "--dry-run"]);
    assert_eq!(
        text(&dry_run.stderr),
        "colibri: would remove 2 ended agents with 10B of output\n"
    );
    assert_eq!(ids(&[]).len(), 4, "a dry run removes nothing");
    let pruned = daemon.cli(&["prune", "--older-than", "0s"]);
    assert!(pruned.status.success());
    assert_eq!(
        pruned.stdout, dry_run.stdout,
        "prune removes what the dry run has printed"
    );
    let lines: Vec<String> = text(&pruned.stdout).lines().map(str::to_owned).collect();
    assert!(
        lines.len() == 2 && lines[0].starts_with(&new) && lines[1].starts_with(&old),
        "{lines:?}"
    );
    assert_eq!(ids(&[]), [second.clone(), first.clone()]);
    assert!(!daemon.agent_dir(&old).exists());
    assert!(daemon.agent_dir(&first).exists());
    daemon.cli_ok(&["kill", "--grace", "0s", &first, &second]);
}

/// Imitation of pi in RPC mode: it accepts each prompt, sends two messages with a tool call between them, and becomes
/// idle.
const FAKE_PI: &str = r#"while read -r line; do
    id=$(printf '%s' "$line" | sed 's/.*"id":"\([^"]*\)".*/\1/')
    say() { printf '%s\n' "$1"; }
    text() { say "{\"type\":\"message_end\",\"message\":{\"role\":\"assistant\",\"content\":[{\"type\":\"text\",\"text\":\"$1\"}]}}"; }
    say "{\"type\":\"response\",\"id\":\"$id\",\"command\":\"prompt\",\"success\":true}"
    say '{"type":"agent_start"}'
    case $line in
    *'hang'*) continue ;;
    *'fail'*) say '{"type":"message_end","message":{"role":"assistant","stopReason":"error","errorMessage":"overloaded"}}' ;;
    *) text 'I look.'
       say '{"type":"tool_execution_start","toolCallId":"1","toolName":"bash","args":{}}'
       say '{"type":"tool_execution_end","toolCallId":"1","toolName":"bash","result":{"content":[{"type":"text","text":"noise"}]}}'
       text 'All done.\nReally.' ;;
    esac
    say '{"type":"agent_end"}'
done"#;

#[test]
fn prompt_waits_for_the_turn_and_prints_the_answer() {
    let daemon = Daemon::start();
    let id = daemon.spawn(&[
        "--runtime",
        "pi",
        "--prompt",
        "first",
        "--",
        "sh",
        "-c",
        FAKE_PI,
    ]);
    wait_until("the first prompt was answered", || {
        let agent = daemon.agent(&id);
        agent["state"] == "idle"
    });
    for _ in 0..2 {
        let output = daemon.cli(&["prompt", "--wait", &id, "what is it?"]);
        assert_eq!(text(&output.stdout), "All done.\nReally.\n", "{output:?}");
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{output:?}"
        );
    }
    let failed = daemon.cli(&["prompt", "--wait", &id, "fail"]);
    assert_eq!(failed.status.code(), Some(1));
    assert_eq!(
        text(&failed.stderr),
        format!("colibri: the turn of agent {id} failed: overloaded\n")
    );
    let timed_out = daemon.cli(&["prompt", "--wait", "--timeout", "500ms", &id, "hang"]);
    assert_eq!(timed_out.status.code(), Some(1));
    assert!(
        text(&timed_out.stderr).contains("did not end its turn within 500ms"),
        "{timed_out:?}"
    );
    daemon.cli_ok(&["kill", "--grace", "0s", &id]);
}

#[test]
fn first_prompt_is_sent_or_its_failure_names_the_agent() {
    let daemon = Daemon::start();
    let id = daemon.spawn(&[
        "--prompt",
        "-- hello",
        "--",
        "sh",
        "-c",
        "read -r line; echo \"got $line\"",
    ]);
    daemon.cli_ok(&["wait", &id]);
    assert_eq!(daemon.stdout(&id), b"got -- hello\n");
    let output = daemon.cli(&["spawn", "--prompt", "x", "--runtime", "pi", "--", "true"]);
    let printed = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains(printed.trim()), "{output:?}");
    let refused = daemon.cli(&["spawn", "--prompt", "x", "--no-input", "--", "cat"]);
    assert_eq!(refused.status.code(), Some(2));
}

#[test]
fn restart_starts_the_next_run_or_a_new_agent() {
    let daemon = Daemon::start();
    let running = daemon.spawn(&["--", "sh", "-c", "echo up; exec sleep 1000"]);
    let ended = daemon.spawn(&["--name", "again", "--", "echo", "hi"]);
    let secret = daemon.spawn(&["--env", "A=b", "--", "true"]);
    daemon.cli(&["wait", &ended, &secret]);
    let pid = daemon.agent(&running)["pid"].clone();
    let output = daemon.cli(&["restart", &running, "missing", &ended, &secret]);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{out}{err}");
    let [same, new] = out.lines().collect::<Vec<_>>()[..] else {
        panic!("{out}{err}")
    };
    assert!(same == running && new != ended, "{out}");
    assert!(
        err.contains("\"missing\"") && err.contains(&secret),
        "{err}"
    );
    wait_until("the next run", || {
        let agent = daemon.agent(&running);
        let next = agent["run"] == 2 && agent["pid"].is_i64() && agent["pid"] != pid;
        next && daemon.stdout(&running) == b"up\nup\n"
    });
    daemon.cli_ok(&["wait", new]);
    assert_eq!(daemon.stdout(new), b"hi\n");
    assert_eq!(daemon.agent(new)["name"], "again");
    daemon.cli_ok(&["kill", "--grace", "0s", &running]);
}
