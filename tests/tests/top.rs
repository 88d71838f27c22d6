//! `colibri top` in a real terminal, with a real daemon and real agents.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::Stdio;

use colibri_tests::small_disk::SmallDisk;
use colibri_tests::tmux::Terminal;
use colibri_tests::{Daemon, eventually, kill_9, processes_with, signal, text, wait_until};
use rustix::process::Signal;

/// Script of an imitation of pi: prints its arguments as events, then records and answers every line of input.
const SCRIPT: &str = r#"printf '%s\n' "$@"; while read -r line; do printf '%s\n' "$line" >>"$RECORD"; printf '%s' "$line" | sed 's/.*"id":"\([^"]*\)".*/{"type":"response","id":"\1","command":"prompt","success":true}\n/'; done"#;
/// Event of pi with tokens and cost.
const USAGE: &str = r#"{"type":"message_end","message":{"role":"assistant","stopReason":"toolUse","usage":{"input":18000,"output":900,"cost":{"total":0.06}}}}"#;

/// Starts an agent that prints these events, waits for a state, and returns its id.
fn spawn_pi(daemon: &Daemon, name: &str, events: &[&str], state: &str) -> String {
    let record = format!("RECORD={}", daemon.path(name).display());
    let options = ["--runtime", "pi", "--name", name, "--env", &record];
    let command = ["--", "sh", "-c", SCRIPT, "sh"];
    let id = daemon.spawn(&[&options[..], &command, events].concat());
    wait_for_state(daemon, &id, state);
    id
}

fn wait_for_state(daemon: &Daemon, id: &str, state: &str) {
    wait_until(state, || daemon.agent(id)["state"] == state);
}

/// Starts a daemon with an agent in each state except `stalled`, and returns their names and ids.
fn start_with_agents() -> (Daemon, Vec<(&'static str, String)>) {
    let daemon = Daemon::start();
    let start = r#"{"type":"agent_start"}"#;
    let tool = r#"{"type":"tool_execution_start","toolCallId":"1","toolName":"bash","args":{}}"#;
    let asks = r#"{"type":"extension_ui_request","id":"1","method":"confirm"}"#;
    let failed = r#"{"type":"message_end","message":{"role":"assistant","stopReason":"error","errorMessage":"overloaded: try again later"}}"#;
    let (turn, end) = (r#"{"type":"turn_end"}"#, r#"{"type":"agent_end"}"#);
    let mut agents = vec![
        (
            "merger",
            spawn_pi(&daemon, "merger", &[start, USAGE, turn, tool], "working"),
        ),
        (
            "asks",
            spawn_pi(&daemon, "asks", &[start, turn, asks], "blocked"),
        ),
        (
            "waits",
            spawn_pi(&daemon, "waits", &[start, USAGE, turn, failed, end], "idle"),
        ),
    ];
    let mut spawn_generic = |name: &'static str, arguments: &[&str], state| {
        let id = daemon.spawn(&[&["--name", name], arguments].concat());
        wait_for_state(&daemon, &id, state);
        agents.push((name, id));
    };
    spawn_generic(
        "quiet",
        &["--jail-path", "/", "--", "sleep", "1000"],
        "starting",
    );
    spawn_generic(
        "failed",
        &["--", "sh", "-c", "echo no >&2; exit 7"],
        "error",
    );
    spawn_generic("finished", &["--", "true"], "done");
    (daemon, agents)
}

fn id_of<'a>(agents: &'a [(&str, String)], expected: &str) -> &'a str {
    let found = agents.iter().find(|(name, _)| *name == expected);
    &found.unwrap().1
}

/// Opens a terminal and runs `colibri top` in it.
fn start_top(daemon: &Daemon, width: u16, height: u16) -> Terminal {
    let terminal = Terminal::open(daemon, width, height, &[]);
    terminal.press(&["colibri top", "Enter"]);
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

/// Waits for this line of states, and for the CPU share of all running agents, which top shows after two samples.
fn wait_for_cpu_shares(terminal: &Terminal, states: &str) -> String {
    terminal.wait_until(states, |screen| {
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

/// The line of states with the agents of [`start_with_agents`].
const STATES: &str = "6 agents  1 blocked  1 error  1 working  1 starting  1 idle  1 done";

#[test]
fn table_fits_terminals_of_all_sizes() {
    let (daemon, agents) = start_with_agents();
    let terminal = start_top(&daemon, 80, 24);
    let mut shown = String::new();
    let mut show = |title: &str, screen: &str| {
        shown.push_str(&format!(
            "==== {title}\n{}\n",
            mask_volatile(screen, &agents)
        ));
    };
    show("80x24", &wait_for_cpu_shares(&terminal, STATES));
    terminal.resize(120, 40);
    let wide = terminal.wait_until("all columns", |screen| {
        screen.contains("TURNS TOKENS")
            && screen
                .lines()
                .nth(39)
                .is_some_and(|line| line.contains("quit"))
    });
    show("120x40, resized", &wide);
    // Wide enough for the line with the pid, whose length varies.
    terminal.resize(76, 8);
    let low = terminal.wait_until("fewer rows", |screen| {
        let lines: Vec<&str> = screen.lines().collect();
        lines[0].starts_with("6 agents")
            && lines[2].starts_with("quiet")
            && lines
                .last()
                .is_some_and(|line| line.starts_with("a attach"))
    });
    show("76x8, resized", &low);
    terminal.press(&["End"]);
    let last = terminal.wait_until("the last one", |screen| screen.contains("failed"));
    show("76x8, the last one", &last);
    terminal.resize(1, 1);
    terminal.resize(80, 24);
    terminal.wait_for_text(STATES);
    terminal.press(&["?"]);
    show("80x24, help", &terminal.wait_for_text("in its state."));
    terminal.press(&["q"]);
    terminal.wait_for_text(STATES);
    insta::assert_snapshot!(shown);
}

#[test]
fn filter_and_sort_order_apply() {
    let (daemon, agents) = start_with_agents();
    let terminal = start_top(&daemon, 80, 24);
    wait_for_cpu_shares(&terminal, STATES);
    let mut shown = String::new();
    let mut show = |title: &str, screen: &str| {
        shown.push_str(&format!(
            "==== {title}\n{}\n",
            mask_volatile(screen, &agents)
        ));
    };
    terminal.press(&["/"]);
    terminal.type_text("pi");
    show("filter is typed", &terminal.wait_for_text(", 3 shown"));
    terminal.press(&["Enter", "S"]);
    let reversed = terminal.wait_until("reversed", |screen| {
        screen.contains("by AGE down")
            && screen
                .lines()
                .nth(2)
                .is_some_and(|row| row.contains("merger"))
    });
    show("filter is kept, oldest first", &reversed);
    terminal.press(&["Escape"]);
    terminal.wait_until("no filter", |screen| !screen.contains("shown"));
    // The columns after AGE are OUTPUT, TURNS, TOKENS, COST, RUNTIME, JAIL and NAME.
    terminal.press(&["s", "s", "s", "s", "s", "s", "s"]);
    show("by name", &terminal.wait_for_text("by NAME up"));
    insta::assert_snapshot!(shown);
}

#[test]
fn kill_requires_confirmation() {
    let (daemon, agents) = start_with_agents();
    let quiet = id_of(&agents, "quiet");
    let terminal = start_top(&daemon, 80, 24);
    wait_for_cpu_shares(&terminal, STATES);
    terminal.press(&["k"]);
    let question = format!("kill quiet ({quiet})? y/N");
    terminal.wait_for_text(&question);
    terminal.press(&["Enter"]);
    terminal.wait_for_text("not killed");
    assert_eq!(daemon.agent(quiet)["state"], "starting");
    assert!(!processes_with(quiet).is_empty());
    terminal.press(&["k"]);
    terminal.wait_for_text(&question);
    terminal.press(&["y"]);
    let screen = terminal.wait_until("the agent has ended", |screen| {
        screen.contains("2 done") && screen.contains("no process is left")
    });
    assert!(daemon.agent(quiet)["exited_at"].is_string(), "{screen}");
    assert!(processes_with(quiet).is_empty(), "{screen}");
    terminal.press(&["k"]);
    terminal.wait_for_text("quiet has ended");
}

#[test]
fn prompt_and_attach_work_from_the_table() {
    let (daemon, agents) = start_with_agents();
    let terminal = start_top(&daemon, 80, 24);
    wait_for_cpu_shares(&terminal, STATES);
    terminal.press(&["Down", "p"]);
    terminal.wait_for_text(&format!("prompt waits ({}):", id_of(&agents, "waits")));
    terminal.type_text("fix teh tests");
    terminal.press(&["C-w", "C-w"]);
    terminal.type_text("the test, täglich ");
    terminal.paste("in\none line\n");
    terminal.wait_for_text("fix the test, täglich in one line");
    terminal.press(&["Enter"]);
    terminal.wait_until("the prompt is sent", |screen| {
        screen.contains("sent to") && !screen.contains("cannot send")
    });
    let record = std::fs::read_to_string(daemon.path("waits")).unwrap();
    assert!(
        record.contains(r#""message":"fix the test, täglich in one line""#),
        "{record}"
    );

    terminal.press(&["a"]);
    terminal.wait_for_text("return with Ctrl-C");
    terminal.wait_for_text("overloaded: try again later");
    assert_eq!(terminal.format_value("alternate_on"), "0");
    terminal.resize(100, 24);
    terminal.press(&["C-c"]);
    let screen = terminal.wait_for_text(STATES);
    assert!(screen.contains("error: overloaded"), "{screen}");
    // The output of an ended agent is shown until a key is pressed.
    terminal.press(&["Down", "Down", "Down", "Enter"]);
    terminal.wait_for_text("return with any key");
    assert_eq!(terminal.format_value("alternate_on"), "0");
    terminal.press(&["x"]);
    terminal.wait_for_text(STATES);
    terminal.press(&["q"]);
    wait_for_shell(&terminal);
}

/// Waits for the shell prompt.
fn wait_for_shell(terminal: &Terminal) {
    terminal.wait_until("the shell", |screen| {
        let shown = screen.trim_end();
        shown == "$" || shown.ends_with("\n$")
    });
}

#[test]
fn terminal_is_restored_at_every_end_of_top() {
    let (daemon, _) = start_with_agents();
    let terminal = start_top(&daemon, 80, 24);
    let check_modes = || {
        // Without a prompt, another program would read the input.
        wait_for_shell(&terminal);
        terminal.press(&[
            "clear; stty -a >\"$HOME/modes.new\" && mv \"$HOME/modes.new\" \"$HOME/modes\"",
            "Enter",
        ]);
        let file = daemon.path("modes");
        let modes = eventually("the shell has written the modes", || {
            std::fs::read_to_string(&file).ok()
        });
        std::fs::remove_file(&file).unwrap();
        let modes: Vec<&str> = modes.split_whitespace().collect();
        for expected in ["echo", "icanon", "isig", "opost", "icrnl"] {
            assert!(modes.contains(&expected), "{expected} in {modes:?}");
        }
        for (name, value) in [("alternate_on", "0"), ("cursor_flag", "1")] {
            assert_eq!(terminal.format_value(name), value, "{name}");
        }
    };
    let top_pid = || {
        let pane: i32 = terminal.format_value("pane_pid").parse().unwrap();
        eventually("colibri top runs", || {
            processes_with("COLIBRI_SOCKET").into_iter().find(|pid| {
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                stat.contains(&format!("(colibri) S {pane} "))
            })
        })
    };
    wait_for_cpu_shares(&terminal, STATES);
    assert_eq!(terminal.format_value("alternate_on"), "1");
    terminal.press(&["q"]);
    check_modes();
    for (sent, code) in [
        (Signal::TERM, 143),
        (Signal::HUP, 129),
        (Signal::INT, 130),
        (Signal::QUIT, 131),
    ] {
        terminal.press(&["colibri --no-autostart top; echo \"exit code $?\"", "Enter"]);
        terminal.wait_for_text(STATES);
        signal(top_pid(), sent);
        terminal.wait_for_text(&format!("exit code {code}\n"));
        check_modes();
    }
    for stop_by_key in [true, false] {
        terminal.press(&["colibri --no-autostart top; echo \"exit code $?\"", "Enter"]);
        terminal.wait_for_text(STATES);
        if stop_by_key {
            terminal.press(&["C-z"]);
        } else {
            signal(top_pid(), Signal::TSTP);
        }
        terminal.wait_until("top is stopped", |screen| screen.contains("Stopped"));
        check_modes();
        terminal.press(&["fg; echo \"exit code $?\"", "Enter"]);
        terminal.wait_for_text(STATES);
        assert_eq!(terminal.format_value("alternate_on"), "1");
        terminal.press(&["Down"]);
        terminal.wait_until("top receives keys", |screen| screen.contains("asks  "));
        terminal.press(&["C-c"]);
        terminal.wait_for_text("exit code 0\n");
        check_modes();
    }
}

/// A serial console reports 0 columns and 0 rows.
#[test]
fn terminal_of_unknown_size_shows_the_table() {
    let (daemon, _) = start_with_agents();
    let terminal = Terminal::open(&daemon, 80, 24, &[]);
    for (rows, columns) in [(0, 0), (24, 0), (0, 80)] {
        terminal.press(&[
            &format!("stty rows {rows} cols {columns}; stty size; colibri top"),
            "Enter",
        ]);
        let screen = terminal.wait_for_text(STATES);
        assert!(
            screen.contains("merger") && screen.contains("finished"),
            "{screen}"
        );
        // A size that becomes known is used.
        terminal.resize(100, 30);
        terminal.wait_until("the table has the new width", |screen| {
            screen.lines().any(|line| line.trim_end().len() > 80)
        });
        terminal.resize(80, 24);
        terminal.press(&["q"]);
        wait_for_shell(&terminal);
        terminal.press(&["clear", "Enter"]);
        wait_for_shell(&terminal);
    }
    terminal.press(&[
        "stty rows 0 cols 0; colibri spawn --help | head -5",
        "Enter",
    ]);
    let screen = terminal.wait_for_text("Usage: colibri spawn");
    assert!(screen.contains("[OPTIONS]"), "{screen}");
}

#[test]
fn no_color_variable_disables_colours() {
    let (daemon, _) = start_with_agents();
    for (variables, is_coloured) in [(&[][..], true), (&[("NO_COLOR", "1")], false)] {
        let terminal = Terminal::open(&daemon, 80, 24, variables);
        terminal.press(&["colibri top", "Enter"]);
        wait_for_cpu_shares(&terminal, STATES);
        let screen = terminal.screen_with_colours();
        let has_colours = screen
            .split("\x1b[")
            .skip(1)
            .filter_map(|part| part.split_once('m'))
            .flat_map(|(codes, _)| codes.split(';'))
            .any(|code| matches!(code.parse(), Ok(30..=38_u8 | 40..=48 | 90..=107)));
        assert_eq!(has_colours, is_coloured, "{variables:?}: {screen:?}");
        let has_reverse_video = screen.contains("\x1b[7m") || screen.contains(";7m");
        assert!(
            has_reverse_video,
            "the selection is visible without colours: {screen:?}"
        );
    }
}

#[test]
fn top_survives_a_killed_daemon() {
    let (mut daemon, agents) = start_with_agents();
    let terminal = start_top(&daemon, 80, 24);
    wait_for_cpu_shares(&terminal, STATES);
    daemon.kill();
    let lost = terminal.wait_for_text("no connection, reconnecting:");
    assert!(
        lost.contains("merger") && lost.contains("finished"),
        "{lost}"
    );
    daemon.launch();
    wait_for_cpu_shares(&terminal, STATES);
    // The table is updated again: agents appear, change and disappear.
    let new = daemon.spawn(&["--name", "newcomer", "--", "sleep", "1000"]);
    terminal.wait_for_text("newcomer");
    terminal.wait_for_text("7 agents");
    kill_9(daemon.agent(&new)["pid"].as_i64().unwrap() as i32);
    terminal.wait_for_text("2 error");
    daemon.cli_ok(&["rm", &new]);
    terminal.wait_until("the agent is removed", |screen| {
        screen.contains("6 agents") && !screen.contains("newcomer")
    });
    daemon.cli_ok(&["kill", id_of(&agents, "asks")]);
    terminal.wait_until("no agent is blocked", |screen| !screen.contains("blocked"));
}

#[test]
fn stalled_agent_is_shown_with_its_reason() {
    let mut daemon = Daemon::prepare();
    let disk = SmallDisk::for_state(&daemon, 16);
    daemon.launch_with_prefix(&disk.enter_command());
    let script = "read line; while :; do echo 0123456789; done";
    let id = daemon.spawn(&["--name", "writer", "--", "sh", "-c", script]);
    let terminal = start_top(&daemon, 80, 24);
    terminal.wait_for_text("1 starting");
    disk.fill();
    daemon.cli_ok(&["send", &id, "go"]);
    let screen = terminal.wait_for_text("1 stalled");
    let reason = screen.split("error: ").nth(1).expect("a reason");
    let reason = reason.replace('\n', "");
    assert!(reason.contains("No space left"), "{screen}");
    disk.empty();
    terminal.wait_for_text("1 working");
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
    terminal.press(&["colibri --no-autostart top; echo \"exit code $?\"", "Enter"]);
    let screen = terminal.wait_for_text("exit code 3\n");
    assert!(screen.contains("cannot connect to a daemon at"), "{screen}");
}
