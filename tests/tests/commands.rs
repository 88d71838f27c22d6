//! Commands for several agents, the order of lists, exit codes of Colibri, and prompts with answers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fmt::Write;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use colibri_tests::{Daemon, eventually, text};
use serde_json::Value;

#[test]
fn failed_start_has_the_exit_code_of_a_shell() {
    let daemon = Daemon::start();
    let file = |name: &str, text: &str, mode: u32| {
        let path = daemon.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path.display().to_string()
    };
    let plain = file("plain", "#!/bin/sh\n", 0o644);
    let orphan = file("orphan", "#!/no/such/interpreter -x\n", 0o755);
    let good = file("good", "#!/bin/sh\nexit 9\n", 0o755);
    let private = tempfile::Builder::new()
        .prefix("colibri-private-")
        .tempfile_in("/tmp")
        .unwrap();
    fs::set_permissions(private.path(), Permissions::from_mode(0o755)).unwrap();
    let private = private.path().to_str().unwrap();
    let huge = "x".repeat(131_072);
    let many = vec!["x"; 50_000];
    let sandbox = ["--jail-path", "/"];
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
            vec![private],
            127,
            "a private /tmp, which hides the host's; mount it with --mount /tmp/",
        ),
        (
            &[],
            vec![&plain],
            126,
            "no execute permission (mode 0644); run: chmod +x",
        ),
        (&sandbox, vec![&plain], 126, "no execute permission"),
        (
            &[],
            vec![&orphan],
            126,
            "interpreter \"/no/such/interpreter\" does not exist on this host",
        ),
        (
            &sandbox,
            vec![&orphan],
            126,
            "\"/no/such/interpreter\" does not exist under /",
        ),
        (&[], vec!["/etc"], 126, "it is a directory"),
        (&[], vec![&good], 9, ""),
        (&sandbox, vec![&good], 9, ""),
        (
            &["--cwd", "/no/such"],
            vec!["true"],
            125,
            "working directory",
        ),
        (
            &["--mount", "/etc:/tmp/x"],
            vec!["true"],
            125,
            "--mount needs a jail; add --jail-path, or remove --mount",
        ),
        (
            &["--jail-path", "/", "--cwd", "/tmp/x"],
            vec!["true"],
            125,
            "a private /tmp",
        ),
        (
            &[],
            vec!["true", &huge],
            125,
            "an argument has 131072 bytes, more than the 131071",
        ),
        (
            &sandbox,
            [&["true"], &many[..]].concat(),
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
        // Too long for an argument of colibri itself, so the request is sent to the socket.
        if command.iter().map(|word| word.len() + 8).sum::<usize>() > 130_000 && command.len() == 2
        {
            let answer = daemon.connect().call(
                "spawn-agent",
                serde_json::json!({"program": command[0], "args": &command[1..]}),
            );
            let message = answer["error"]["message"].as_str().unwrap();
            assert!(message.contains(expected), "{message}");
            continue;
        }
        let words = [&["run"], options, &["--"], &command].concat();
        let output = daemon.cli(&words);
        let err = text(&output.stderr);
        let shown = &words[..words.len().min(8)];
        assert_eq!(output.status.code(), Some(code), "{shown:?}: {err}");
        assert!(err.contains(expected), "{shown:?}: {err}");
    }
    // Without a daemon the exit code is 3, not 125.
    let absent = Daemon::prepare();
    for command in [&["run", "--", "true"][..], &["wait", "x"], &["attach", "x"]] {
        assert_eq!(absent.cli(command).status.code(), Some(3), "{command:?}");
    }
}

#[test]
fn exit_reason_is_shown_by_every_command() {
    let daemon = Daemon::start();
    let named = |name: &str, options: &[&str], script: &str| {
        let words = [&["--name", name], options, &["--", "sh", "-c", script]].concat();
        daemon.spawn(&words)
    };
    let killed = named("killed", &[], "exec sleep 1000");
    let late = named("late", &["--wall-time", "100ms"], "exec sleep 1000");
    let failed = named("failed", &[], "exit 7");
    let signalled = named("signalled", &[], "kill -9 $$");
    daemon.ok(&["kill", "--grace", "0s", &killed]);
    for (id, code, brief, note) in [
        (&killed, 137, "killed", "was killed by a user"),
        (&late, 143, "wall time", "wall"),
        (&failed, 7, "code 7", ""),
        (&signalled, 137, "signal 9", ""),
    ] {
        let waited = daemon.cli(&["wait", id]);
        let message = text(&waited.stderr);
        assert!(message.contains(note), "{brief}: {message}");
        // KILL may arrive before TERM has ended the agent.
        let found = waited.status.code().unwrap();
        assert!(
            found == code || (id == &killed && found == 143),
            "{brief}: {found}"
        );
        let listed = daemon.ok(&["ps"]);
        let row = listed.lines().find(|line| line.starts_with(id.as_str()));
        assert!(row.unwrap().contains(&format!("  {brief} ")), "{listed}");
        assert!(
            daemon.ok(&["status", id]).contains(&format!("({brief}")),
            "{brief}"
        );
        let shown = daemon.ok(&["events", id]);
        assert!(shown.contains(&format!("exit    {brief}")), "{shown}");
    }
    let status = daemon.ok(&["status", &killed]);
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
        let times = text(&output.stdout)
            .lines()
            .filter(|line| !line.starts_with("started") && !line.starts_with("ended "))
            .map(|line| format!("{line}\n"))
            .collect::<String>();
        write!(shown, "{times}{}", text(&output.stderr)).unwrap();
        writeln!(shown, "exit code {}\n", output.status.code().unwrap()).unwrap();
    }
    for (fixed, id) in &ids {
        shown = shown.replace(id.as_str(), fixed);
    }
    insta::assert_snapshot!(shown);
}

#[test]
fn lists_have_running_agents_first_and_prune_removes_ended_ones() {
    let daemon = Daemon::start();
    let ended = |text: &str| {
        let id = daemon.spawn(&["--", "echo", text]);
        daemon.ok(&["wait", &id]);
        id
    };
    let running = |seconds: &str| daemon.spawn(&["--", "sleep", seconds]);
    let (old, first, new, second) = (
        ended("one"),
        running("1001"),
        ended("three"),
        running("1002"),
    );
    let ids = |words: &[&str]| -> Vec<String> {
        let listed = daemon.ok(&[&["ps", "-q"], words].concat());
        listed.lines().map(str::to_owned).collect()
    };
    assert_eq!(ids(&[]), [&second, &first, &new, &old].map(Clone::clone));
    assert_eq!(ids(&["--running"]), [second.clone(), first.clone()]);
    assert_eq!(
        ids(&["--last", "3"]),
        [&second, &first, &new].map(Clone::clone)
    );
    let json: Value = serde_json::from_str(&daemon.ok(&["ps", "--json", "--last", "1"])).unwrap();
    assert_eq!(json[0]["id"], second);

    // No agent ended that long ago.
    let output = daemon.cli(&["prune", "--older-than", "1h"]);
    assert_eq!(
        text(&output.stderr),
        "colibri: removed 0 ended agents with 0B of output\n"
    );
    let dry = daemon.cli(&["prune", "--dry-run"]);
    assert_eq!(
        text(&dry.stderr),
        "colibri: would remove 2 ended agents with 10B of output\n"
    );
    assert_eq!(ids(&[]).len(), 4, "a dry run removes nothing");
    let pruned = daemon.cli(&["prune", "--older-than", "0s"]);
    assert!(pruned.status.success());
    assert_eq!(
        pruned.stdout, dry.stdout,
        "it removes what the dry run printed"
    );
    let lines: Vec<String> = text(&pruned.stdout).lines().map(str::to_owned).collect();
    assert!(
        lines.len() == 2 && lines[0].starts_with(&new) && lines[1].starts_with(&old),
        "{lines:?}"
    );
    assert_eq!(ids(&[]), [second.clone(), first.clone()]);
    assert!(!daemon.agent_dir(&old).exists());
    assert!(daemon.agent_dir(&first).exists());
    daemon.ok(&["kill", "--grace", "0s", &first, &second]);
}

/// Imitates pi in RPC mode: accepts each prompt, sends two messages with a tool call between them, and becomes idle.
const PI: &str = r#"while read -r line; do
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
    let id = daemon.spawn(&["--runtime", "pi", "--prompt", "first", "--", "sh", "-c", PI]);
    eventually("the first prompt was answered", || {
        let agent = daemon.agent(&id);
        (agent["state"] == "idle").then_some(())
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
    let late = daemon.cli(&["prompt", "--wait", "--timeout", "500ms", &id, "hang"]);
    assert_eq!(late.status.code(), Some(1));
    assert!(
        text(&late.stderr).contains("did not end its turn within 500ms"),
        "{late:?}"
    );
    daemon.ok(&["kill", "--grace", "0s", &id]);
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
    daemon.ok(&["wait", &id]);
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
    eventually("the next run", || {
        let agent = daemon.agent(&running);
        let next = agent["run"] == 2 && agent["pid"].is_i64() && agent["pid"] != pid;
        (next && daemon.stdout(&running) == b"up\nup\n").then_some(())
    });
    daemon.ok(&["wait", new]);
    assert_eq!(daemon.stdout(new), b"hi\n");
    assert_eq!(daemon.agent(new)["name"], "again");
    daemon.ok(&["kill", "--grace", "0s", &running]);
}
