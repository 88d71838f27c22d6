//! `colibri events` reports every event, or the number of coalesced ones.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Stdio};

use colibri_tests::metrics::{scrape, subscriptions};
use colibri_tests::{Daemon, read, text, wait_until};
use serde_json::{Value, json};

/// A running `colibri events --json`.
struct Events {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Events {
    fn start(daemon: &Daemon, args: &[&str]) -> Self {
        let before = subscriptions(daemon);
        let mut child = daemon
            .command("colibri")
            .args(["--no-autostart", "events", "--json"])
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        // The command reports no events before its subscription.
        wait_until("the command has subscribed", || {
            subscriptions(daemon) > before
        });
        Self { child, lines }
    }

    fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        (!line.is_empty()).then(|| serde_json::from_str(&line).expect(&line))
    }

    /// Returns the events up to and including the first match.
    fn read_until(&mut self, matches: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut events = Vec::new();
        loop {
            let event = self.next().expect("no more events");
            let is_last = matches(&event);
            events.push(event);
            if is_last {
                return events;
            }
        }
    }

    /// Closes the reader, which ends the command.
    fn close(self) {
        let Self { mut child, lines } = self;
        drop(lines);
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}

fn events_of<'a>(events: &'a [Value], id: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["id"] == id).collect()
}

fn event_kinds(events: &[&Value]) -> Vec<String> {
    let kind = |event: &&Value| event["event"].as_str().unwrap().to_owned();
    events.iter().map(kind).collect()
}

/// Script of an agent that changes its state 4000 times.
const FLIP: &str = r#"i=0; while [ $i -lt 2000 ]; do
    echo '{"type":"extension_ui_request","id":"1","method":"confirm"}'; echo '{"type":"agent_start"}'; i=$((i+1)); done"#;

#[test]
fn events_match_their_documentation() {
    let daemon = Daemon::start_with_metrics();
    let mut events = Events::start(&daemon, &["--output"]);
    let script = r#"echo '{"type":"tool_execution_start","toolName":"bash"}'; read x; echo '{"type":"error","error":"no"}'; exit 3"#;
    let worker = daemon.spawn(&[
        "--name",
        "night shift",
        "--runtime",
        "pi",
        "--",
        "sh",
        "-c",
        script,
    ]);
    let mut all = events.read_until(|event| event["current_tool"] == "bash");
    daemon.cli_ok(&["send", &worker, "go"]);
    all.extend(events.read_until(|event| event["event"] == "exit"));
    let restarted = daemon.spawn(&[
        "--restart",
        "on-failure",
        // Long enough for the daemon to observe each restart delay.
        "--restart-delay",
        "500ms",
        "--restart-limit",
        "2",
        "--",
        "sh",
        "-c",
        "exit 1",
    ]);
    all.extend(events.read_until(|event| event["event"] == "exit"));
    let sleeper = daemon.spawn(&["--", "sleep", "1000"]);
    daemon.cli_ok(&["kill", &sleeper]);
    all.extend(events.read_until(|event| event["event"] == "exit"));
    daemon.cli_ok(&["shutdown"]);
    let gap = events
        .read_until(|event| event["event"] == "gap")
        .pop()
        .unwrap();
    assert!(
        gap["reason"].as_str().unwrap().contains("are missing"),
        "{gap}"
    );
    events.close();

    let worker = events_of(&all, &worker);
    assert!(worker.iter().all(|event| event["name"] == "night shift"));
    let without_output: Vec<&Value> = worker
        .iter()
        .copied()
        .filter(|event| event["event"] != "output")
        .collect();
    assert_eq!(event_kinds(&without_output)[0], "spawned");
    assert_eq!(*event_kinds(&without_output).last().unwrap(), "exit");
    let last = without_output.last().unwrap();
    assert_eq!(
        (&last["exit_code"], &last["exit_signal"]),
        (&json!(3), &Value::Null)
    );
    let written: String = worker
        .iter()
        .filter_map(|event| event["data"].as_str())
        .collect();
    assert_eq!(written.lines().count(), 2, "{written}");

    let restarted = events_of(&all, &restarted);
    let runs: Vec<u64> = restarted
        .iter()
        .filter(|event| event["event"] == "run")
        .map(|event| 1 + event["merged"].as_u64().unwrap_or(0))
        .collect();
    assert_eq!(runs.iter().sum::<u64>(), 2, "{restarted:?}");

    let sleeper = events_of(&all, &sleeper);
    let kill = sleeper
        .iter()
        .find(|event| event["event"] == "kill")
        .unwrap();
    assert_eq!(kill["signal"], "TERM");
    assert_eq!(kill["uid"], rustix::process::getuid().as_raw());
    assert_eq!(sleeper.last().unwrap()["exit_signal"], 15);

    // Compare the fields of events with those documented for each kind in the manual.
    let page = read("docs/man/colibri.1");
    let (documented, common) = documented_fields(&page);
    for event in &all {
        let kind = event["event"].as_str().unwrap();
        let known = documented
            .get(kind)
            .unwrap_or_else(|| panic!("{kind} is not documented"));
        for field in event.as_object().unwrap().keys() {
            assert!(
                common.contains(field) || known.contains(field),
                "{kind}: {field}"
            );
        }
    }
    let mut reported: BTreeMap<&str, BTreeSet<&String>> = BTreeMap::new();
    for event in &all {
        let fields = event.as_object().unwrap().keys();
        reported
            .entry(event["event"].as_str().unwrap())
            .or_default()
            .extend(fields);
    }
    for (kind, fields) in &documented {
        // Other tests cover these events.
        if !["gap", "network", "removed"].contains(&kind.as_str()) {
            let reported = &reported[kind.as_str()];
            let absent: Vec<_> = fields
                .iter()
                .filter(|field| !reported.contains(field) && *field != "merged")
                .collect();
            assert!(
                absent.is_empty(),
                "{kind}: documented but absent: {absent:?}"
            );
        }
    }
}

/// Returns the documented fields of each kind of event, and the fields that all kinds have, from colibri(1).
fn documented_fields(page: &str) -> (BTreeMap<String, BTreeSet<String>>, BTreeSet<String>) {
    let section = page
        .split(".Ss Events\n")
        .nth(1)
        .expect("no section Events");
    let section = section.split("\n.S").next().unwrap();
    let words = |line: &str| -> BTreeSet<String> {
        let words = line.split_whitespace().skip(1).filter(|word| *word != ",");
        words.map(str::to_owned).collect()
    };
    let mut lines = section.lines();
    let common = words(lines.find(|line| line.starts_with(".Cm time ")).unwrap());
    let mut kinds = BTreeMap::new();
    let mut kind = None;
    for line in lines {
        if let Some(name) = line.strip_prefix(".It Cm ") {
            kinds.insert(name.to_owned(), BTreeSet::new());
            kind = Some(name.to_owned());
        } else if let (true, Some(kind)) = (line.starts_with(".Cm "), &kind) {
            kinds.get_mut(kind).unwrap().extend(words(line));
        }
    }
    assert_eq!(kinds.len(), 9, "{kinds:?}");
    (kinds, common)
}

#[test]
fn coalesced_changes_are_counted() {
    let daemon = Daemon::start_with_metrics();
    let mut events = Events::start(&daemon, &[]);
    let id = daemon.spawn(&["--runtime", "pi", "--", "sh", "-c", FLIP]);
    // The test reads no event before the agent ends, so the pipe is full and changes are coalesced.
    daemon.cli_ok(&["wait", &id]);
    let all = events.read_until(|event| event["event"] == "exit");
    let states: Vec<&Value> = all
        .iter()
        .filter(|event| event["event"] == "state")
        .collect();
    let mut changes = 0;
    for pair in states.windows(2) {
        assert_eq!(
            pair[1]["previous_state"], pair[0]["state"],
            "an unreported gap"
        );
    }
    for state in &states {
        changes += state["merged"].as_u64().unwrap_or(0);
        // The first state counts as a change only if it has a previous state.
        changes += u64::from(!state["previous_state"].is_null());
    }
    // 2000 changes to blocked, 2000 to working, and one to done. A line that arrives in two reads adds one to idle.
    assert!((4001..=4002).contains(&changes), "{changes}");
    assert!(
        states.len() < 3000,
        "nothing was coalesced: {}",
        states.len()
    );
    assert_eq!(all.last().unwrap()["state"], "done");
    let metrics = scrape(&daemon);
    let merged = metrics
        .lines()
        .find_map(|line| line.strip_prefix("colibri_subscription_merged_states_total "))
        .unwrap();
    assert_ne!(merged, "0");
}

#[test]
fn short_lived_agents_are_reported() {
    let daemon = Daemon::start_with_metrics();
    let mut events = Events::start(&daemon, &[]);
    let mut wire = daemon.connect();
    let ids: BTreeSet<String> = (0..40)
        .map(|_| {
            let answer = wire.call("spawn-agent", json!({"program": "true"}));
            answer["result"]["id"].as_str().unwrap().to_owned()
        })
        .collect();
    let mut reported: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut exits = 0;
    while exits < ids.len() {
        let event = events.next().unwrap();
        exits += usize::from(event["event"] == "exit");
        let kinds = reported
            .entry(event["id"].as_str().unwrap().to_owned())
            .or_default();
        kinds.push(event["event"].as_str().unwrap().to_owned());
    }
    assert_eq!(reported.keys().cloned().collect::<BTreeSet<_>>(), ids);
    for (id, kinds) in reported {
        assert_eq!(kinds[0], "spawned", "{id}: {kinds:?}");
        assert_eq!(
            kinds.iter().filter(|kind| *kind == "spawned").count(),
            1,
            "{id}"
        );
    }
}

#[test]
fn closed_reader_ends_events_immediately_without_error() {
    let daemon = Daemon::start_with_metrics();
    let id = daemon.spawn(&["--", "sleep", "1000"]);
    let mut events = Events::start(&daemon, &[]);
    assert_eq!(events.next().unwrap()["id"], id.as_str());
    // No further event occurs whose write could fail.
    let Events { child, lines } = events;
    drop(lines);
    let ended = child.wait_with_output().unwrap();
    assert_eq!(
        (ended.status.code(), text(&ended.stderr)),
        (Some(0), String::new())
    );
}

#[test]
fn events_of_named_agents_are_masked_and_end_with_them() {
    let daemon = Daemon::start();
    let script = r#"echo '{"type":"error","error":"a\u001b[2Jb\u202ec\udb40\udc41d"}'; echo '{"type":"agent_start"}'; read x"#;
    let first = daemon.spawn(&["--name", "nx", "--runtime", "pi", "--", "sh", "-c", script]);
    let second = daemon.spawn(&["--", "sh", "-c", "exit 4"]);
    daemon.spawn(&["--", "sleep", "1000"]);
    daemon.wait(&second);
    wait_until("the agent is working", || {
        daemon.agent(&first)["state"] == "working"
    });
    let child = daemon
        .command("colibri")
        .args(["--no-autostart", "events", &first[..6], &second])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    daemon.cli_ok(&["send", &first, "x"]);
    let shown = child.wait_with_output().unwrap();
    assert!(shown.status.success());
    let shown = text(&shown.stdout);
    assert!(
        shown.contains("exit    code 4\n") && shown.contains("exit    code 0\n"),
        "{shown}"
    );
    let is_hidden =
        |c: &char| matches!(c, '\u{202e}' | '\u{e0041}') || c.is_control() && *c != '\n';
    let unmasked = shown.chars().find(is_hidden);
    assert_eq!(unmasked, None, "{shown:?}");
}

#[test]
fn events_report_a_daemon_restart_as_a_gap() {
    let mut daemon = Daemon::start_with_metrics();
    let go = daemon.path("go");
    let script = format!("until [ -e {} ]; do sleep 0.02; done; exit 6", go.display());
    let id = daemon.spawn(&["--", "sh", "-c", &script]);
    let running = daemon.spawn(&["--", "sleep", "1000"]);
    let mut events = Events::start(&daemon, &[]);
    events.read_until(|event| event["id"] == running.as_str());
    daemon.kill();
    let gap = events
        .read_until(|event| event["event"] == "gap")
        .pop()
        .unwrap();
    assert!(
        gap["reason"].as_str().unwrap().contains("are missing"),
        "{gap}"
    );
    std::fs::write(&go, "").unwrap();
    let ended = daemon.agent_dir(&id).join("exit.json");
    wait_until("the agent has ended without a daemon", || ended.exists());
    daemon.launch_with_metrics();
    let exit = events
        .read_until(|event| event["event"] == "exit")
        .pop()
        .unwrap();
    assert_eq!((&exit["id"], &exit["exit_code"]), (&json!(id), &json!(6)));
    let later = daemon.spawn(&["--", "true"]);
    events.read_until(|event| event["event"] == "spawned" && event["id"] == later.as_str());
    drop(events.lines);
    assert_eq!(events.child.wait().unwrap().code(), Some(0));
}
