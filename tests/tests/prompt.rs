//! Prompts and `attach` with imitated agents; pi.rs tests pi.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Read;
use std::process::Stdio;

use colibri_tests::{Daemon, program, text, wait_until};
use serde_json::json;

/// Runs `colibri` and returns exit code, stdout and stderr.
fn run_cli(daemon: &Daemon, args: &[&str]) -> (Option<i32>, String, String) {
    let output = daemon.cli(args);
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn generic_agent_gets_prompts_as_lines() {
    let daemon = Daemon::start();
    let id = daemon.spawn(&["--", "sh", "-c", "read a; read b; echo \"$a|$b\"; cat"]);
    daemon.cli_ok(&["prompt", &id, "do this"]);
    for (args, expected) in [
        (&["prompt", &id, "--steer", "x"][..], "cannot be steered"),
        (&["prompt", &id, "--follow-up", "x"], "cannot queue"),
        (&["abort", &id], "colibri kill --signal INT"),
    ] {
        let (code, _, message) = run_cli(&daemon, args);
        assert_eq!(code, Some(1), "{args:?}: {message}");
        assert!(message.contains(expected), "{args:?}: {message}");
    }
    let mut child = daemon
        .command("colibri")
        .args(["prompt", &id, "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"and that").unwrap();
    assert!(child.wait().unwrap().success());
    daemon.cli_ok(&["send", "--close", &id, "last"]);
    daemon.cli_ok(&["wait", &id]);
    assert_eq!(text(&daemon.stdout(&id)), "do this|and that\nlast\n");
    let (code, _, message) = run_cli(&daemon, &["prompt", &id, "too late"]);
    assert_eq!(code, Some(1), "{message}");
}

#[test]
fn missing_answer_is_an_error_with_its_cause() {
    let daemon = Daemon::start();
    let silent = daemon.spawn(&["--runtime", "pi", "--", "sleep", "1000"]);
    for command in [&["prompt", &silent, "hello"][..], &["abort", &silent]] {
        let args: Vec<&str> = command
            .iter()
            .copied()
            .chain(["--timeout", "50ms"])
            .collect();
        let (code, _, message) = run_cli(&daemon, &args);
        assert_eq!(code, Some(1), "{message}");
        assert!(
            message.contains("did not respond") && message.contains("colibri logs"),
            "{message}"
        );
    }
    let ending = daemon.spawn(&["--runtime", "pi", "--", "sh", "-c", "read line; exit 3"]);
    let (code, _, message) = run_cli(&daemon, &["prompt", &ending, "hello"]);
    assert_eq!(code, Some(1), "{message}");
    assert!(message.contains("ended before it responded"), "{message}");
}

#[test]
fn answer_is_found_among_other_output() {
    let daemon = Daemon::start();
    // The script answers another client first, and then floods its output.
    let script = r#"
        printf '{"type":"agent'; read line; printf '_start"}\n'
        id=$(printf '%s' "$line" | sed 's/.*"id":"\([^"]*\)".*/\1/')
        echo '{"type":"response","id":"other","command":"prompt","success":false,"error":"refused"}'
        head -c 3000000 /dev/zero | tr '\0' x; echo
        printf '{"type":"response","id":"%s","command":"prompt","success":%s,"error":"too\\u001b[2J busy"}\n' "$id" "$1"
        sleep 1000"#;
    for (success, expected) in [("true", 0), ("false", 1)] {
        let agent = ["--runtime", "pi", "--", "sh", "-c", script, "sh", success];
        let id = daemon.spawn(&agent);
        let (code, _, message) = run_cli(&daemon, &["prompt", &id, "hello"]);
        assert_eq!(code, Some(expected), "{message}");
        assert_eq!(
            message.contains("refused prompt: too busy"),
            expected == 1,
            "{message}"
        );
        daemon.cli_ok(&["kill", "--grace", "0s", &id]);
    }
}

#[test]
fn no_input_agent_reads_eof_immediately() {
    let daemon = Daemon::start();
    let id = daemon.spawn(&["--no-input", "--", "sh", "-c", "cat; echo end"]);
    daemon.cli_ok(&["wait", &id]);
    assert_eq!(text(&daemon.stdout(&id)), "end\n");
    let (_, stdout, _) = run_cli(&daemon, &["run", "--no-input", "--", "cat"]);
    assert_eq!(stdout, "");
    // Each run of the agent reads EOF, and input is refused.
    let restart = [
        "--restart",
        "on-failure",
        "--restart-delay",
        "1ms",
        "--restart-limit",
        "2",
    ];
    let script = ["--no-input", "--", "sh", "-c", "cat; echo end; exit 1"];
    let restarted = daemon.spawn(&[&restart[..], &script].concat());
    let sent = daemon
        .connect()
        .call("send-input", json!({"id": restarted, "data": "x"}));
    let kind = &sent["error"]["data"]["kind"];
    assert!(
        ["input-closed", "agent-ended"]
            .iter()
            .any(|known| kind == known),
        "{sent}"
    );
    run_cli(&daemon, &["wait", &restarted]);
    assert_eq!(text(&daemon.stdout(&restarted)), "end\n".repeat(3));
}

#[test]
fn malformed_lines_are_counted_and_shown() {
    let daemon = Daemon::start();
    let script = r#"echo '{"type":"agent_start"}'; echo 'Warning: old'; printf '\033[2J{\n'; echo '{"type":"unknown"}'"#;
    let id = daemon.spawn(&["--runtime", "pi", "--", "sh", "-c", script]);
    daemon.cli_ok(&["wait", &id]);
    let view = &daemon.agent(&id)["view"];
    assert_eq!(
        (&view["malformed_lines"], &view["events"]),
        (&json!(2), &json!(4))
    );
    let status = daemon.cli_ok(&["status", &id]);
    assert!(
        status.contains("malformed   2 of 4 lines are not events\n"),
        "{status}"
    );
    let shown = daemon.cli_ok(&["attach", &id]);
    assert_eq!(shown, "# not an event: Warning: old\n# not an event: {\n");
}

#[test]
fn attach_shows_both_outputs_and_exits_with_the_agents_code() {
    let daemon = Daemon::start();
    let script =
        r"printf 'name? '; read name; echo; printf 'bad \033[31m%s\033[0m\007\n' $name >&2; exit 7";
    let id = daemon.spawn(&["--", "sh", "-c", script]);
    let mut attached = daemon
        .command("colibri")
        .args(["attach", &id])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = attached.stdout.take().unwrap();
    // A partial line is shown.
    let mut beginning = [0; 8];
    stdout.read_exact(&mut beginning).unwrap();
    assert_eq!(&beginning, b"  name? ");
    std::io::Write::write_all(&mut attached.stdin.take().unwrap(), b"ada\n").unwrap();
    let mut shown = String::new();
    stdout.read_to_string(&mut shown).unwrap();
    let output = attached.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    let mut lines: Vec<&str> = shown.lines().collect();
    // The order of the two outputs is not defined.
    lines.retain(|line| !line.trim().is_empty());
    assert_eq!(lines, ["stderr| bad ada"]);
    assert!(
        text(&output.stderr).contains(&format!("{id} ended: code 7")),
        "{}",
        text(&output.stderr)
    );
    // --raw shows the bytes unchanged.
    let (code, stdout, stderr) = run_cli(&daemon, &["attach", "--raw", "--no-input", &id]);
    assert_eq!(
        (code, stdout.as_str(), stderr.lines().next()),
        (Some(7), "name? \n", Some("bad \x1b[31mada\x1b[0m\x07"))
    );
}

#[test]
fn colour_requires_a_terminal_and_respects_no_color() {
    let daemon = Daemon::start();
    let id = daemon.spawn(&["--", "sh", "-c", "echo bad >&2"]);
    daemon.cli_ok(&["wait", &id]);
    let command = format!("{} attach {id}", program("colibri").display());
    for (no_color, is_coloured) in [("", true), ("1", false)] {
        let output = daemon
            .external_command("script")
            .args(["--quiet", "--return", "--command", &command, "/dev/null"])
            .env("NO_COLOR", no_color)
            .output()
            .unwrap();
        let shown = text(&output.stdout);
        assert!(output.status.success(), "{shown}");
        assert_eq!(
            shown.contains("\x1b[33mstderr| bad\x1b[0m"),
            is_coloured,
            "{shown:?}"
        );
        assert_eq!(shown.contains('\x1b'), is_coloured, "{shown:?}");
    }
    assert_eq!(daemon.cli_ok(&["attach", &id]), "stderr| bad\n");
}

#[test]
fn attach_shows_the_tail_of_long_output_or_all() {
    let daemon = Daemon::start();
    let script = r#"i=0; while [ $i -lt 3 ]; do head -c 600000 /dev/zero | tr '\0' $i; echo; i=$((i + 1)); done
        echo '{"type":"compaction_start"}'"#;
    let id = daemon.spawn(&["--runtime", "pi", "--", "sh", "-c", script]);
    daemon.cli_ok(&["wait", &id]);
    let lines = |args: &[&str]| {
        let (code, shown, message) = run_cli(&daemon, args);
        assert_eq!(code, Some(0), "{message}");
        let lines: Vec<String> = shown
            .lines()
            .map(|line| line.chars().take(20).collect())
            .collect();
        (
            lines.join("|"),
            message.contains("show all of it with --all"),
        )
    };
    assert_eq!(
        lines(&["attach", &id]),
        ("# not an event: 2222|- compacting its his".to_owned(), true)
    );
    let (all, has_hint) = lines(&["attach", "--all", &id]);
    assert_eq!((all.split('|').count(), has_hint), (4, false), "{all}");
}

#[test]
fn closed_reader_ends_attach_and_not_the_agent() {
    let daemon = Daemon::start();
    let id = daemon.spawn(&["--", "sh", "-c", "while :; do echo line; sleep 0.01; done"]);
    let mut attached = daemon
        .command("colibri")
        .args(["attach", "--no-input", &id])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first_line = [0; 7];
    let mut stdout = attached.stdout.take().unwrap();
    stdout.read_exact(&mut first_line).unwrap();
    assert_eq!(&first_line, b"  line\n");
    drop(stdout);
    assert_eq!(attached.wait().unwrap().code(), Some(141));
    let before = daemon.agent(&id)["stdout_bytes"].clone();
    wait_until("the agent keeps running", || {
        daemon.agent(&id)["stdout_bytes"] != before
    });
}
