//! `colibri logs`: offsets, timestamps, tails, and output that retention has removed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use colibri_tests::{Daemon, program, text, wait_until};
use serde_json::json;
use std::time::{Duration, Instant};

/// Interval within which a journal records one time for all lines (`JournalOptions::index_interval`).
const INDEX_INTERVAL: Duration = Duration::from_millis(10);

/// Runs `colibri` and returns stdout and stderr in the order of the writes.
fn both_outputs(daemon: &Daemon, args: &str) -> String {
    let script = format!(
        "{} --no-autostart {args} 2>&1",
        program("colibri").display()
    );
    let output = daemon.external_command("sh").args(["-c", &script]).output();
    text(&output.unwrap().stdout)
}

#[test]
fn retention_reports_dropped_bytes_and_keeps_offsets() {
    let mut daemon = Daemon::prepare();
    daemon
        .launch_with_settings("segment_bytes = 4096\nretain_bytes = 8192\nfsync = \"interval\"\n");
    // More than the capacity of a pipe: a segment has at least the bytes of one read, so one read is not enough.
    let id = daemon.spawn(&["--", "seq", "-f", "line %06.0f", "1", "100000"]);
    assert_eq!(daemon.wait(&id), Some(0));
    let all: String = (1..=100_000).map(|i| format!("line {i:06}\n")).collect();
    for args in [&["logs", &id][..], &["logs", "-f", &id]] {
        let output = daemon.cli(args);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{err}");
        assert!(
            all.ends_with(&out) && out.len() >= 8192,
            "{} bytes",
            out.len()
        );
        let dropped = all.len() - out.len();
        assert!(dropped > 0);
        assert!(
            err.contains(&format!("the first {dropped} bytes are no longer kept")),
            "{err}"
        );
        let from = dropped.to_string();
        assert_eq!(
            daemon.cli_ok(&["logs", "--from", &from, &id]),
            out,
            "offsets do not change"
        );
        let below = daemon.cli(&["logs", "--from", "0", "--stream", "stdout", &id]);
        assert_eq!(below.status.code(), Some(1));
        assert!(
            text(&below.stderr).contains(&format!("the oldest kept offset is {dropped}")),
            "{}",
            text(&below.stderr)
        );
        let read = daemon
            .connect()
            .call("read-journal", json!({"id": id, "stream": "stdout"}));
        assert_eq!(
            read["error"]["data"],
            json!({"kind": "offset-below-oldest", "oldest_offset": dropped}),
            "{read}"
        );
    }
}

#[test]
fn lines_have_timestamps_and_since_selects_by_them() {
    let daemon = Daemon::start();
    let script = "echo first; read x; echo second >&2; read x; printf thi; read x; echo rd";
    let id = daemon.spawn(&["--jail-path", "/", "--", "sh", "-c", script]);
    let written = || {
        let agent = daemon.agent(&id);
        agent["stdout_bytes"].as_u64().unwrap() + agent["stderr_bytes"].as_u64().unwrap()
    };
    for bytes in [6, 13, 16] {
        wait_until("the next part is written", || written() == bytes);
        daemon.cli_ok(&["send", &id, "go"]);
    }
    daemon.wait(&id);
    let logs = |options: &str| both_outputs(&daemon, &format!("logs {id} {options}"));
    let with_times = logs("--timestamps");
    let lines: Vec<(&str, &str)> = with_times
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .collect();
    let words: Vec<&str> = lines.iter().map(|(_, line)| *line).collect();
    assert_eq!(
        words,
        ["first", "second", "third"],
        "in order of arrival, from two outputs"
    );
    let times: Vec<jiff::Timestamp> = lines
        .iter()
        .map(|(time, _)| time.parse().unwrap())
        .collect();
    assert!(times.is_sorted() && times[0] < times[2], "{times:?}");
    let followed = logs("--timestamps -f --stream stdout");
    assert_eq!(
        followed,
        format!("{} first\n{} third\n", lines[0].0, lines[2].0)
    );
    let third = jiff::Timestamp::from_millisecond(times[2].as_millisecond()).unwrap();
    assert_eq!(logs(&format!("--since {third}")), "third\n");
    assert_eq!(
        logs("--since 1h"),
        "first\nsecond\nthird\n",
        "in order of arrival, even without timestamps"
    );
    assert_eq!(logs("--since 2999-01-01T00:00:00Z"), "");
    let conflict = daemon.cli(&["logs", &id, "--since", "1h", "--from", "3"]);
    assert_eq!(conflict.status.code(), Some(2));
}

#[test]
fn every_command_merges_both_outputs_by_time() {
    let daemon = Daemon::start();
    let script = "i=0; while [ $i -lt 6 ]; do echo out $i; sleep 0.05; echo err $i >&2; sleep 0.05; i=$((i+1)); done";
    let id = daemon.spawn(&["--", "sh", "-c", script]);
    daemon.wait(&id);
    let expected: Vec<String> = (0..6)
        .flat_map(|i| [format!("out {i}"), format!("err {i}")])
        .collect();
    for args in [
        "logs",
        "logs -f",
        "logs --timestamps",
        "logs -f --timestamps",
        "attach --all --raw --no-input",
        "attach --all --no-input",
        "attach --no-input",
        "events --output",
    ] {
        let shown = both_outputs(&daemon, &format!("{args} {id}"));
        // The line of the agent is at the end of the shown line.
        let written: Vec<&str> = shown
            .lines()
            .filter_map(|line| Some(&line[line.rfind("out ").max(line.rfind("err "))?..]))
            .filter(|line| line.len() == "out 0".len())
            .collect();
        assert_eq!(written, expected, "{args}: {shown}");
    }
}

#[test]
fn tail_prints_the_last_lines_of_one_stream_or_both() {
    let daemon = Daemon::start();
    // A line longer than one read, an empty line, and a line without a line feed.
    let script = "echo first; head -c 300000 /dev/zero | tr '\\0' x; echo; echo; printf last";
    let long = daemon.spawn(&["--", "sh", "-c", script]);
    assert_eq!(daemon.wait(&long), Some(0));
    let line = "x".repeat(300_000);
    for (count, expected) in [
        ("0", String::new()),
        ("1", "last".to_owned()),
        ("2", "\nlast".to_owned()),
        ("3", format!("{line}\n\nlast")),
        ("4", format!("first\n{line}\n\nlast")),
        ("99", format!("first\n{line}\n\nlast")),
    ] {
        for args in [
            &["logs", "--tail", count, &long][..],
            &["logs", "-f", "--tail", count, &long],
        ] {
            assert!(daemon.cli_ok(args) == expected, "{args:?}");
        }
    }

    // Lines of both streams, each with a different time.
    let script = "while read line; do echo out $line; read line; echo err $line >&2; done";
    let merged = daemon.spawn(&["--", "sh", "-c", script]);
    let (mut out, mut err) = (String::new(), String::new());
    for number in 0..10 {
        daemon.cli_ok(&["send", &merged, &number.to_string()]);
        match number % 2 {
            0 => out.push_str(&format!("out {number}\n")),
            _ => err.push_str(&format!("err {number}\n")),
        }
        wait_until("the agent has written", || {
            let agent = daemon.agent(&merged);
            let written = (
                agent["stdout_bytes"].as_u64(),
                agent["stderr_bytes"].as_u64(),
            );
            written == (Some(out.len() as u64), Some(err.len() as u64))
        });
        let written_at = Instant::now();
        wait_until("the next line gets another time", || {
            written_at.elapsed() > INDEX_INTERVAL
        });
    }
    let tail = |count: &str| {
        let output = daemon.cli(&["logs", "--tail", count, &merged]);
        assert!(output.status.success(), "{output:?}");
        (text(&output.stdout), text(&output.stderr))
    };
    assert_eq!(
        tail("3"),
        ("out 8\n".to_owned(), "err 7\nerr 9\n".to_owned())
    );
    assert_eq!(tail("1"), (String::new(), "err 9\n".to_owned()));
    assert_eq!(tail("10"), (out, err));
    let stdout = daemon.cli_ok(&["logs", "--tail", "2", "--stream", "stdout", &merged]);
    assert_eq!(stdout, "out 6\nout 8\n");
    daemon.cli_ok(&["kill", "--grace", "0s", &merged]);
}

#[test]
fn tail_of_a_long_journal_reads_only_its_end() {
    let daemon = Daemon::start();
    let id = daemon.spawn(&["--", "seq", "-f", "line %09.0f", "1", "1000000"]);
    assert_eq!(daemon.wait(&id), Some(0));
    let count_reads = |args: &[&str]| {
        let before = daemon.bytes_read();
        let output = daemon.cli_ok(args);
        (output, daemon.bytes_read() - before)
    };
    // The count includes other reads of the daemon until it has processed all output.
    wait_until("only the end is read", || {
        let (shown, read) = count_reads(&["logs", "--tail", "2", &id]);
        assert_eq!(shown, "line 000999999\nline 001000000\n");
        read < 2_000_000
    });
    let (all, read) = count_reads(&["logs", &id]);
    assert!(all.len() == 15_000_000 && read >= 15_000_000, "{read}");
}
