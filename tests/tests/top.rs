//! `colibri top` in a real terminal, with a real daemon and real agents.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::Stdio;

use colibri_tests::mounts::SmallDisk;
use colibri_tests::tmux::Terminal;
use colibri_tests::{Daemon, eventually, kill_9, processes_with, text};

/// Prints events of pi, then records and answers every line of input.
const SCRIPT: &str = r#"printf '%s\n' "$@"; while read -r line; do printf '%s\n' "$line" >>"$KEPT"; printf '%s' "$line" | sed 's/.*"id":"\([^"]*\)".*/{"type":"response","id":"\1","command":"prompt","success":true}\n/'; done"#;
const USAGE: &str = r#"{"type":"message_end","message":{"role":"assistant","stopReason":"toolUse","usage":{"input":18000,"output":900,"cost":{"total":0.06}}}}"#;

/// Starts an agent that prints these events, waits for a state, and returns its id.
fn pi(daemon: &Daemon, name: &str, events: &[&str], state: &str) -> String {
    let record = format!("KEPT={}", daemon.path(name).display());
    let options = ["--runtime", "pi", "--name", name, "--env", &record];
    let command = ["--", "sh", "-c", SCRIPT, "sh"];
    let id = daemon.spawn(&[&options[..], &command, events].concat());
    in_state(daemon, &id, state);
    id
}

fn in_state(daemon: &Daemon, id: &str, state: &str) {
    eventually(state, || (daemon.agent(id)["state"] == state).then_some(()));
}

/// Starts a daemon with an agent in each state except `stalled`; returns their names and ids.
fn with_agents() -> (Daemon, Vec<(&'static str, String)>) {
    let daemon = Daemon::start();
    let start = r#"{"type":"agent_start"}"#;
    let tool = r#"{"type":"tool_execution_start","toolCallId":"1","toolName":"bash","args":{}}"#;
    let asks = r#"{"type":"extension_ui_request","id":"1","method":"confirm"}"#;
    let failed = r#"{"type":"message_end","message":{"role":"assistant","stopReason":"error","errorMessage":"overloaded: try again later"}}"#;
    let (turn, end) = (r#"{"type":"turn_end"}"#, r#"{"type":"agent_end"}"#);
    let mut agents = vec![
        (
            "merger",
            pi(&daemon, "merger", &[start, USAGE, turn, tool], "working"),
        ),
        ("asks", pi(&daemon, "asks", &[start, turn, asks], "blocked")),
        (
            "waits",
            pi(&daemon, "waits", &[start, USAGE, turn, failed, end], "idle"),
        ),
    ];
    let mut generic = |name: &'static str, words: &[&str], state| {
        let id = daemon.spawn(&[&["--name", name], words].concat());
        in_state(&daemon, &id, state);
        agents.push((name, id));
    };
    generic(
        "quiet",
        &["--jail-path", "/", "--", "sleep", "1000"],
        "starting",
    );
    generic(
        "failed",
        &["--", "sh", "-c", "echo no >&2; exit 7"],
        "error",
    );
    generic("finished", &["--", "true"], "done");
    (daemon, agents)
}

fn id_of<'a>(agents: &'a [(&str, String)], expected: &str) -> &'a str {
    let found = agents.iter().find(|(name, _)| *name == expected);
    &found.unwrap().1
}

fn start(daemon: &Daemon, width: u16, height: u16) -> Terminal {
    let terminal = Terminal::open(daemon, width, height, &[]);
    terminal.keys(&["colibri top", "Enter"]);
    terminal
}

/// Masks ids, pids, and columns that change over time.
fn mask_volatile(screen: &str, agents: &[(&str, String)]) -> String {
    let mut screen = screen.to_owned();
    for (name, id) in agents {
        let placeholder = format!("{:-<10.10}", format!("ID-{name}"));
        screen = screen.replace(id, &placeholder);
    }
    let mut lines: Vec<String> = screen.lines().map(str::to_owned).collect();
    if let Some(at) = lines.iter().position(|line| line.starts_with("NAME ")) {
        let titles = lines[at].clone();
        let mut volatile = Vec::new();
        // These columns are right-aligned.
        for (title, width) in [
            ("SINCE", 5),
            ("CPU", 5),
            ("MEM", 6),
            ("AGE", 4),
            ("OUTPUT", 6),
        ] {
            if let Some(start) = titles.find(title) {
                let end = start + title.len();
                volatile.push(end - width..end);
            }
        }
        let rows = lines.iter_mut().skip(at + 1);
        for row in rows.filter(|row| has_state(row, &RUNNING) || has_state(row, &ENDED)) {
            let cells = row.chars().enumerate().map(|(at, cell)| {
                if volatile.iter().any(|range| range.contains(&at)) {
                    '.'
                } else {
                    cell
                }
            });
            *row = cells.collect();
        }
    }
    for line in &mut lines {
        let words = line.split("pid ").enumerate().map(|(at, part)| match at {
            0 => part.to_owned(),
            _ => format!(
                "PID{}",
                part.trim_start_matches(|c: char| c.is_ascii_digit())
            ),
        });
        *line = words.collect::<Vec<_>>().concat();
    }
    lines.join("\n")
}

/// Waits until all agents are shown with their CPU share, which appears after two samples.
fn settled(terminal: &Terminal, states: &str) -> String {
    terminal.wait(states, |screen| {
        let rows = screen.lines().skip(2);
        let measured = rows.clone().filter(|row| row.contains('%')).count();
        screen.contains(states) && measured >= rows.filter(|row| has_state(row, &RUNNING)).count()
    })
}

const RUNNING: [&str; 4] = ["working", "blocked", "idle", "starting"];
const ENDED: [&str; 2] = ["done", "error"];

fn has_state(row: &str, states: &[&str]) -> bool {
    states
        .iter()
        .any(|state| row.contains(&format!(" {state} ")))
}

const STATES: &str = "6 agents  1 blocked  1 error  1 working  1 starting  1 idle  1 done";

#[test]
fn table_fits_terminals_of_all_sizes() {
    let (daemon, agents) = with_agents();
    let terminal = start(&daemon, 80, 24);
    let mut shown = String::new();
    let mut show = |what: &str, screen: &str| {
        shown.push_str(&format!(
            "==== {what}\n{}\n",
            mask_volatile(screen, &agents)
        ));
    };
    show("80x24", &settled(&terminal, STATES));
    terminal.resize(120, 40);
    let wide = terminal.wait("all columns", |screen| {
        screen.contains("TURNS TOKENS")
            && screen
                .lines()
                .nth(39)
                .is_some_and(|line| line.contains("quit"))
    });
    show("120x40, resized", &wide);
    // Wide enough for the line with the pid, whose length differs.
    terminal.resize(76, 8);
    let low = terminal.wait("fewer rows", |screen| {
        let lines: Vec<&str> = screen.lines().collect();
        lines[0].starts_with("6 agents")
            && lines[2].starts_with("quiet")
            && lines
                .last()
                .is_some_and(|line| line.starts_with("a attach"))
    });
    show("76x8, resized", &low);
    terminal.keys(&["End"]);
    let last = terminal.wait("the last one", |screen| screen.contains("failed"));
    show("76x8, the last one", &last);
    terminal.resize(1, 1);
    terminal.resize(80, 24);
    terminal.wait_for(STATES);
    terminal.keys(&["?"]);
    show("80x24, help", &terminal.wait_for("in its state."));
    terminal.keys(&["q"]);
    terminal.wait_for(STATES);
    insta::assert_snapshot!(shown);
}

#[test]
fn filter_and_sort_order_apply() {
    let (daemon, agents) = with_agents();
    let terminal = start(&daemon, 80, 24);
    settled(&terminal, STATES);
    let mut shown = String::new();
    let mut show = |what: &str, screen: &str| {
        shown.push_str(&format!(
            "==== {what}\n{}\n",
            mask_volatile(screen, &agents)
        ));
    };
    terminal.keys(&["/"]);
    terminal.types("pi");
    show("filter is typed", &terminal.wait_for(", 3 shown"));
    terminal.keys(&["Enter", "S"]);
    let reversed = terminal.wait("reversed", |screen| {
        screen.contains("by AGE down")
            && screen
                .lines()
                .nth(2)
                .is_some_and(|row| row.contains("merger"))
    });
    show("filter is kept, oldest first", &reversed);
    terminal.keys(&["Escape"]);
    terminal.wait("no filter", |screen| !screen.contains("shown"));
    // From AGE on: output, turns, tokens, cost, runtime, jail, name.
    terminal.keys(&["s", "s", "s", "s", "s", "s", "s"]);
    show("by name", &terminal.wait_for("by NAME up"));
    insta::assert_snapshot!(shown);
}

#[test]
fn kill_requires_confirmation() {
    let (daemon, agents) = with_agents();
    let quiet = id_of(&agents, "quiet");
    let terminal = start(&daemon, 80, 24);
    settled(&terminal, STATES);
    terminal.keys(&["k"]);
    let question = format!("kill quiet ({quiet})? y/N");
    terminal.wait_for(&question);
    terminal.keys(&["Enter"]);
    terminal.wait_for("not killed");
    assert_eq!(daemon.agent(quiet)["state"], "starting");
    assert!(!processes_with(quiet).is_empty());
    terminal.keys(&["k"]);
    terminal.wait_for(&question);
    terminal.keys(&["y"]);
    let screen = terminal.wait("it has ended", |screen| {
        screen.contains("2 done") && screen.contains("no process is left")
    });
    assert!(daemon.agent(quiet)["exited_at"].is_string(), "{screen}");
    assert!(processes_with(quiet).is_empty(), "{screen}");
    terminal.keys(&["k"]);
    terminal.wait_for("quiet has ended");
}

#[test]
fn prompt_and_attach_work_from_the_table() {
    let (daemon, agents) = with_agents();
    let terminal = start(&daemon, 80, 24);
    settled(&terminal, STATES);
    terminal.keys(&["Down", "p"]);
    terminal.wait_for(&format!("prompt waits ({}):", id_of(&agents, "waits")));
    terminal.types("fix teh tests");
    terminal.keys(&["C-w", "C-w"]);
    terminal.types("the test, täglich ");
    terminal.pastes("in\none line\n");
    terminal.wait_for("fix the test, täglich in one line");
    terminal.keys(&["Enter"]);
    terminal.wait("the prompt is sent", |screen| {
        screen.contains("sent to") && !screen.contains("cannot send")
    });
    let record = std::fs::read_to_string(daemon.path("waits")).unwrap();
    assert!(
        record.contains(r#""message":"fix the test, täglich in one line""#),
        "{record}"
    );

    terminal.keys(&["a"]);
    terminal.wait_for("return with Ctrl-C");
    terminal.wait_for("overloaded: try again later");
    assert_eq!(terminal.value("alternate_on"), "0");
    terminal.resize(100, 24);
    terminal.keys(&["C-c"]);
    let screen = terminal.wait_for(STATES);
    assert!(screen.contains("error: overloaded"), "{screen}");
    // For an ended agent, the output stays until a key is pressed.
    terminal.keys(&["Down", "Down", "Down", "Enter"]);
    terminal.wait_for("return with any key");
    assert_eq!(terminal.value("alternate_on"), "0");
    terminal.keys(&["x"]);
    terminal.wait_for(STATES);
    terminal.keys(&["q"]);
    shell(&terminal);
}

/// Waits for the shell prompt.
fn shell(terminal: &Terminal) {
    terminal.wait("the shell", |screen| {
        let shown = screen.trim_end();
        shown == "$" || shown.ends_with("\n$")
    });
}

#[test]
fn terminal_is_restored_however_top_ends() {
    let (daemon, _) = with_agents();
    let terminal = start(&daemon, 80, 24);
    let home = daemon.path("log").parent().unwrap().to_owned();
    let modes = || {
        // Before the prompt, another program reads the input.
        shell(&terminal);
        terminal.keys(&[
            "clear; stty -a >\"$HOME/looking\" && mv \"$HOME/looking\" \"$HOME/modes\"",
            "Enter",
        ]);
        let modes = eventually("the modes", || {
            std::fs::read_to_string(home.join("modes")).ok()
        });
        std::fs::remove_file(home.join("modes")).unwrap();
        let modes: Vec<&str> = modes.split_whitespace().collect();
        for expected in ["echo", "icanon", "isig", "opost", "icrnl"] {
            assert!(modes.contains(&expected), "{expected} in {modes:?}");
        }
        for (name, value) in [("alternate_on", "0"), ("cursor_flag", "1")] {
            assert_eq!(terminal.value(name), value, "{name}");
        }
    };
    let pid = || {
        let pane: i32 = terminal.value("pane_pid").parse().unwrap();
        eventually("colibri top runs", || {
            processes_with("COLIBRI_SOCKET").into_iter().find(|pid| {
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                stat.contains(&format!("(colibri) S {pane} "))
            })
        })
    };
    settled(&terminal, STATES);
    assert_eq!(terminal.value("alternate_on"), "1");
    terminal.keys(&["q"]);
    modes();
    for (signal, code) in [("TERM", 143), ("HUP", 129), ("INT", 130), ("QUIT", 131)] {
        terminal.keys(&["colibri --no-autostart top; echo \"exit code $?\"", "Enter"]);
        terminal.wait_for(STATES);
        let kill = std::process::Command::new("kill")
            .args([format!("-{signal}"), pid().to_string()])
            .status();
        assert!(kill.unwrap().success());
        terminal.wait_for(&format!("exit code {code}\n"));
        modes();
    }
    for stop in ["key", "signal"] {
        terminal.keys(&["colibri --no-autostart top; echo \"exit code $?\"", "Enter"]);
        terminal.wait_for(STATES);
        if stop == "key" {
            terminal.keys(&["C-z"]);
        } else {
            let kill = std::process::Command::new("kill")
                .args(["-TSTP", &pid().to_string()])
                .status();
            assert!(kill.unwrap().success());
        }
        terminal.wait("it has stopped", |screen| screen.contains("Stopped"));
        modes();
        terminal.keys(&["fg; echo \"exit code $?\"", "Enter"]);
        terminal.wait_for(STATES);
        assert_eq!(terminal.value("alternate_on"), "1");
        terminal.keys(&["Down"]);
        terminal.wait("top receives keys", |screen| screen.contains("asks  "));
        terminal.keys(&["C-c"]);
        terminal.wait_for("exit code 0\n");
        modes();
    }
}

#[test]
fn no_color_disables_colour() {
    let (daemon, _) = with_agents();
    for (variables, expected) in [(&[][..], true), (&[("NO_COLOR", "1")], false)] {
        let terminal = Terminal::open(&daemon, 80, 24, variables);
        terminal.keys(&["colibri top", "Enter"]);
        settled(&terminal, STATES);
        let screen = terminal.coloured();
        let coloured = screen
            .split("\x1b[")
            .skip(1)
            .filter_map(|part| part.split_once('m'))
            .flat_map(|(codes, _)| codes.split(';'))
            .any(|code| matches!(code.parse(), Ok(30..=38_u8 | 40..=48 | 90..=107)));
        assert_eq!(coloured, expected, "{variables:?}: {screen:?}");
        let reversed = screen.contains("\x1b[7m") || screen.contains(";7m");
        assert!(
            reversed,
            "the selection is visible without colours: {screen:?}"
        );
    }
}

#[test]
fn top_survives_a_killed_daemon() {
    let (mut daemon, agents) = with_agents();
    let terminal = start(&daemon, 80, 24);
    settled(&terminal, STATES);
    daemon.kill();
    let lost = terminal.wait_for("no connection, reconnecting:");
    assert!(
        lost.contains("merger") && lost.contains("finished"),
        "{lost}"
    );
    daemon.launch();
    settled(&terminal, STATES);
    // The table is live again: agents appear, change and disappear.
    let late = daemon.spawn(&["--name", "latecomer", "--", "sleep", "1000"]);
    terminal.wait_for("latecomer");
    terminal.wait_for("7 agents");
    kill_9(daemon.agent(&late)["pid"].as_i64().unwrap() as i32);
    terminal.wait_for("2 error");
    daemon.ok(&["rm", &late]);
    terminal.wait("the agent is removed", |screen| {
        screen.contains("6 agents") && !screen.contains("latecomer")
    });
    daemon.ok(&["kill", id_of(&agents, "asks")]);
    terminal.wait("no agent is blocked", |screen| !screen.contains("blocked"));
}

#[test]
fn stalled_agent_is_shown_with_its_reason() {
    let mut daemon = Daemon::prepare();
    let disk = SmallDisk::for_state(&daemon, 16);
    daemon.launch_with_prefix(&disk.enter());
    let script = "read line; while :; do echo 0123456789; done";
    let id = daemon.spawn(&["--name", "writer", "--", "sh", "-c", script]);
    let terminal = start(&daemon, 80, 24);
    terminal.wait_for("1 starting");
    disk.fill();
    daemon.ok(&["send", &id, "go"]);
    let screen = terminal.wait_for("1 stalled");
    let reason = screen.split("error: ").nth(1).expect("a reason");
    let reason = reason.replace('\n', "");
    assert!(reason.contains("No space left"), "{screen}");
    disk.empty();
    terminal.wait_for("1 working");
}

#[test]
fn missing_terminal_or_daemon_is_an_error() {
    let daemon = Daemon::prepare();
    let output = daemon.cli(&["top"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        text(&output.stderr),
        "colibri: cannot run top: standard input and output must be a terminal; use colibri ps or colibri events instead\n"
    );
    let mut command = daemon.command("colibri");
    let output = command.arg("top").stdin(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let terminal = Terminal::open(&daemon, 160, 24, &[]);
    terminal.keys(&["colibri --no-autostart top; echo \"exit code $?\"", "Enter"]);
    let screen = terminal.wait_for("exit code 3\n");
    assert!(screen.contains("cannot connect to a daemon at"), "{screen}");
}
