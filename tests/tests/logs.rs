//! `colibri logs`: from a byte or a time on, with times, and where the beginning is not kept any more.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use colibri_tests::{Daemon, eventually, text};
use serde_json::json;

#[test]
fn what_retention_dropped_is_told_and_offsets_stay() {
    let mut daemon = Daemon::place();
    let config = daemon.path(".config/colibri");
    std::fs::create_dir_all(&config).unwrap();
    std::fs::write(
        config.join("colibri.toml"),
        "segment_bytes = 4096\nretain_bytes = 8192\nfsync = \"interval\"\n",
    )
    .unwrap();
    daemon.launch();
    // Much more than a pipe holds: what one read brings goes into one segment.
    let id = daemon.spawn(&["--", "seq", "-f", "line %06.0f", "1", "100000"]);
    assert_eq!(daemon.cli(&["wait", &id]).status.code(), Some(0));
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
            daemon.ok(&["logs", "--from", &from, &id]),
            out,
            "offsets are as ever"
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
fn lines_have_the_times_at_which_they_came_and_can_be_asked_for_by_them() {
    let daemon = Daemon::start();
    let script = "echo first; read x; echo second >&2; read x; printf thi; read x; echo rd";
    let id = daemon.spawn(&["--jail-path", "/", "--", "sh", "-c", script]);
    let written = || {
        let agent = daemon.agent(&id);
        agent["stdout_bytes"].as_u64().unwrap() + agent["stderr_bytes"].as_u64().unwrap()
    };
    for bytes in [6, 13, 16] {
        eventually("the next piece is there", || {
            (written() == bytes).then_some(())
        });
        daemon.ok(&["send", &id, "go"]);
    }
    daemon.cli(&["wait", &id]);
    let both = |args: &str| {
        let output = std::process::Command::new("sh")
            .arg("-c")
            .arg(format!(
                "{} --no-autostart logs {id} {args} 2>&1",
                colibri_tests::program("colibri").display()
            ))
            .env("COLIBRI_SOCKET", daemon.socket())
            .output()
            .unwrap();
        text(&output.stdout)
    };
    let stamped = both("--timestamps");
    let lines: Vec<(&str, &str)> = stamped
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .collect();
    let words: Vec<&str> = lines.iter().map(|(_, line)| *line).collect();
    assert_eq!(
        words,
        ["first", "second", "third"],
        "as they came, from two outputs"
    );
    let times: Vec<jiff::Timestamp> = lines
        .iter()
        .map(|(time, _)| time.parse().unwrap())
        .collect();
    assert!(times.is_sorted() && times[0] < times[2], "{times:?}");
    let followed = both("--timestamps -f --stream stdout");
    assert_eq!(
        followed,
        format!("{} first\n{} third\n", lines[0].0, lines[2].0)
    );
    let third = jiff::Timestamp::from_millisecond(times[2].as_millisecond()).unwrap();
    assert_eq!(both(&format!("--since {third}")), "third\n");
    assert_eq!(
        both("--since 1h"),
        "first\nsecond\nthird\n",
        "as they came, also where times are not shown"
    );
    assert_eq!(both("--since 2999-01-01T00:00:00Z"), "");
    let usage = daemon.cli(&["logs", &id, "--since", "1h", "--from", "3"]);
    assert_eq!(usage.status.code(), Some(2));
}

#[test]
fn both_outputs_are_merged_by_time_in_every_command() {
    let daemon = Daemon::start();
    let script = "i=0; while [ $i -lt 6 ]; do echo out $i; sleep 0.05; echo err $i >&2; sleep 0.05; i=$((i+1)); done";
    let id = daemon.spawn(&["--", "sh", "-c", script]);
    daemon.cli(&["wait", &id]);
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
        let output = std::process::Command::new("sh")
            .arg("-c")
            .arg(format!(
                "{} --no-autostart {args} {id} 2>&1",
                colibri_tests::program("colibri").display()
            ))
            .env("COLIBRI_SOCKET", daemon.socket())
            .output()
            .unwrap();
        let shown = text(&output.stdout);
        let found: Vec<&str> = shown
            .lines()
            .filter_map(|line| line.find("out ").or(line.find("err ")).map(|at| (line, at)))
            .map(|(line, _)| {
                let at = ["out ", "err "]
                    .iter()
                    .filter_map(|word| line.rfind(word))
                    .max();
                &line[at.unwrap()..]
            })
            .filter(|words| words.len() == 5)
            .collect();
        assert_eq!(found, expected, "{args}: {shown}");
    }
}
