//! Agents with a terminal: `run -t`, `spawn -t` and `attach`, in real terminals and with real shells.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;

use colibri_tests::tmux::Terminal;
use colibri_tests::{
    Daemon, eventually, kill_9, processes_with, program, signal, text, wait_until,
};
use rustix::process::Signal;
use serde_json::{Value, json};

/// A full-screen program: draws on the alternate screen with colours and modes, then shows each line of input.
const PAINTER: &str = r"stty -echo; printf '\033]0;painter\007\033[?1049h\033[?1000h\033[?2004h\033[2J\033[2;5H\033[1;31mred\033[m plain\033[3;1H\033[4;44munderlined blue\033[m\033[6;1H'; while read -r line; do printf '\033[5;1H\033[K%s' $line; done";

/// Opens a terminal and runs a command of `colibri` in it.
fn open(daemon: &Daemon, command: &str) -> Terminal {
    open_sized(daemon, 80, 12, command)
}

fn open_sized(daemon: &Daemon, width: u16, height: u16, command: &str) -> Terminal {
    let terminal = Terminal::open(daemon, width, height, &[]);
    type_line(&terminal, command);
    terminal
}

fn type_line(terminal: &Terminal, line: &str) {
    terminal.type_text(line);
    terminal.press(&["Enter"]);
}

/// Returns the id of the only agent.
fn only_agent(daemon: &Daemon) -> String {
    eventually("an agent", || {
        let agents = daemon.agents();
        Some(agents.first()?["id"].as_str()?.to_owned())
    })
}

fn size_of(daemon: &Daemon, id: &str) -> (Value, Value) {
    let terminal = &daemon.agent(id)["terminal"];
    (terminal["rows"].clone(), terminal["cols"].clone())
}

fn detach(terminal: &Terminal) {
    terminal.press(&["C-p", "C-q"]);
    terminal.wait_for_text("detached; agent");
    // The shell has its modes back.
    type_line(
        terminal,
        "stty -a | grep -o ' icanon'; stty -a | grep -o ' echo '",
    );
    terminal.wait_until("cooked mode", |screen| {
        screen.contains("\n icanon") && screen.contains("\n echo")
    });
}

fn spawn_painter(daemon: &Daemon) -> String {
    daemon.spawn(&["-t", "--", "bash", "-c", PAINTER])
}

#[test]
fn agent_has_a_terminal_with_job_control_and_its_exit_code() {
    let daemon = Daemon::start();
    for jail in ["--no-jail", "--jail-path /"] {
        let terminal = Terminal::open(&daemon, 80, 24, &[("STY", "1"), ("SSH_TTY", "/dev/pts/9")]);
        type_line(
            &terminal,
            &format!("colibri run -t {jail} --env LC_MARK=1 -- bash --norc"),
        );
        terminal.wait_until("the shell of the agent", |screen| screen.contains("bash-"));
        type_line(&terminal, "stty size; tty; echo $TERM $COLORTERM");
        terminal.wait_for_text("24 80\n/dev/");
        terminal.wait_for_text("xterm-256color truecolor");
        type_line(
            &terminal,
            "clear; env | grep -cE '^(TMUX|TMUX_PANE|STY|SSH_TTY|TERM_PROGRAM)='",
        );
        terminal.wait_until("no variable", |screen| screen.starts_with("0\n"));
        // The interrupt character reaches the foreground job only.
        type_line(&terminal, "clear; (echo job''running; sleep 1000)");
        terminal.wait_for_text("jobrunning");
        terminal.press(&["C-c"]);
        type_line(&terminal, "echo after $?");
        terminal.wait_for_text("after 130");
        // A stopped job continues.
        type_line(
            &terminal,
            "clear; (echo job''ready; read -r x; echo got $x)",
        );
        terminal.wait_for_text("jobready");
        terminal.press(&["C-z"]);
        terminal.wait_for_text("Stopped");
        type_line(&terminal, "fg");
        terminal.wait_until("the job again", |screen| {
            screen.matches("( echo").count() > 1
        });
        type_line(&terminal, "back");
        terminal.wait_for_text("got back");
        type_line(&terminal, "exit 7");
        terminal.wait_until("the end", |screen| screen.trim_end().ends_with("\n$"));
        type_line(&terminal, "echo exit code $?; stty -a | grep -o ' icanon'");
        terminal.wait_for_text("exit code 7\n icanon");
    }
}

#[test]
fn size_follows_the_terminal() {
    let daemon = Daemon::start();
    let script = "trap 'stty size' WINCH; stty size; while :; do sleep 0.01; done";
    let terminal = open(
        &daemon,
        &format!("colibri run -t --jail-path / -- bash -c \"{script}\""),
    );
    terminal.wait_for_text("12 80");
    terminal.resize(100, 20);
    terminal.wait_for_text("20 100");
    let id = only_agent(&daemon);
    wait_until("the size", || {
        size_of(&daemon, &id) == (json!(20), json!(100))
    });
}

#[test]
fn two_terminals_share_the_smallest_size() {
    let daemon = Daemon::start();
    let script = "trap 'echo now $(stty size)' WINCH; while :; do sleep 0.01; done";
    let id = daemon.spawn(&["-t", "--", "bash", "-c", script]);
    assert_eq!(size_of(&daemon, &id), (json!(24), json!(80)));
    let attach = format!("colibri attach {id}");
    let wide = open_sized(&daemon, 120, 15, &attach);
    wide.wait_for_text("now 15 120");
    let tall = open_sized(&daemon, 70, 30, &attach);
    // Each shows all of the agent's screen.
    for terminal in [&wide, &tall] {
        terminal.wait_for_text("now 15 70");
    }
    let shown = tall.screen();
    let lines: Vec<&str> = wide.screen().lines().map(|_| "").collect();
    assert_eq!(lines.len(), 15);
    assert!(shown.lines().skip(15).all(str::is_empty), "{shown}");
    detach(&tall);
    wide.wait_for_text("now 15 120");
    detach(&wide);
    assert_eq!(
        size_of(&daemon, &id),
        (json!(15), json!(120)),
        "the size stays without a terminal"
    );
}

#[test]
fn other_size_scrolls_in_both_terminals() {
    let daemon = Daemon::start();
    let id = daemon.spawn(&["-t", "--", "bash", "-c", "while read -r n; do seq $n; done"]);
    let attach = format!("colibri attach {id}");
    let small = open_sized(&daemon, 60, 8, &attach);
    let large = open_sized(&daemon, 90, 20, &attach);
    wait_until("the size", || {
        size_of(&daemon, &id) == (json!(8), json!(60))
    });
    type_line(&small, "30");
    for terminal in [&small, &large] {
        let screen = terminal.wait_until("the end", |screen| screen.contains("\n30\n"));
        let lines: Vec<&str> = screen.lines().take(8).collect();
        assert_eq!(lines, ["24", "25", "26", "27", "28", "29", "30", ""]);
    }
}

#[test]
fn screen_is_the_same_after_a_detach() {
    let daemon = Daemon::start();
    let id = spawn_painter(&daemon);
    let terminal = open(&daemon, &format!("colibri attach {id}"));
    terminal.wait_for_text("underlined blue");
    type_line(&terminal, "typed");
    terminal.wait_for_text("\ntyped");
    let before = terminal.screen_with_colours();
    assert_eq!(terminal.format_value("alternate_on"), "1");
    assert_eq!(terminal.format_value("mouse_any_flag"), "1");
    assert_eq!(terminal.format_value("pane_title"), "painter");
    detach(&terminal);
    assert_eq!(terminal.format_value("alternate_on"), "0");
    assert_eq!(terminal.format_value("mouse_any_flag"), "0");
    terminal.press(&["clear", "Enter"]);
    type_line(&terminal, &format!("colibri attach {id}"));
    terminal.wait_for_text("underlined blue");
    assert_eq!(terminal.screen_with_colours(), before);
    assert_eq!(terminal.format_value("alternate_on"), "1");
    assert_eq!(terminal.format_value("mouse_any_flag"), "1");
    type_line(&terminal, "again");
    terminal.wait_for_text("\nagain");
}

#[test]
fn screen_is_the_same_after_the_death_of_the_daemon() {
    let mut daemon = Daemon::start();
    let id = spawn_painter(&daemon);
    let terminal = open(&daemon, &format!("colibri attach {id}"));
    terminal.wait_for_text("underlined blue");
    let before = terminal.screen_with_colours();
    daemon.kill();
    daemon.launch();
    // The attached client reconnects.
    eventually("input reaches the agent", || {
        type_line(&terminal, "survived");
        terminal.screen().contains("\nsurvived").then_some(())
    });
    type_line(&terminal, "''");
    terminal.wait_until("an empty line", |screen| !screen.contains("survived"));
    detach(&terminal);
    type_line(&terminal, &format!("clear; colibri attach {id}"));
    terminal.wait_for_text("underlined blue");
    // Only the shown input differs.
    let lines = |screen: &str| {
        screen
            .lines()
            .take(4)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(lines(&terminal.screen_with_colours()), lines(&before));
    assert_eq!(size_of(&daemon, &id), (json!(12), json!(80)));
}

#[test]
fn long_history_is_drawn_from_its_end() {
    let daemon = Daemon::start();
    // More than is replayed, and only at the start a screen, which the agent draws again for another size.
    let script = r#"stty -echo; draw() { printf '\033[2J\033[Hdrawn %s' "$(stty size)"; }; trap draw WINCH; draw; for i in $(seq 5); do head -c 1000000 /dev/zero | tr '\0' '\r'; done; printf '\033[3;1Hready'; while :; do sleep 0.01; done"#;
    let id = daemon.spawn(&["-t", "--", "bash", "-c", script]);
    wait_until("the output", || {
        daemon.agent(&id)["stdout_bytes"].as_u64().unwrap() > 5_000_000
    });
    let terminal = open_sized(&daemon, 80, 24, &format!("colibri attach {id}"));
    terminal.wait_for_text("drawn 24 80");
}

#[test]
fn signals_leave_a_usable_terminal() {
    let daemon = Daemon::start();
    let terminal = open(&daemon, "colibri run -t -- cat; echo code $?");
    let id = only_agent(&daemon);
    type_line(&terminal, "ready");
    terminal.wait_for_text("ready\nready");
    let client = || {
        let clients = processes_with("colibri\0run\0-t");
        clients.first().copied()
    };
    signal(eventually("the client", client), Signal::TERM);
    // The agent gets the signal, as without a terminal.
    terminal.wait_for_text("code 143");
    assert_eq!(daemon.agent(&id)["exit"]["reason"], "killed-by-user");
    let id = daemon.spawn(&["-t", "--", "cat"]);
    type_line(
        &terminal,
        &format!("clear; colibri attach {id}; echo code $?"),
    );
    let client = || {
        processes_with(&format!("colibri\0attach\0{id}"))
            .first()
            .copied()
    };
    let pid = eventually("the client", client);
    wait_until("raw mode", || size_of(&daemon, &id).0 == json!(12));
    signal(pid, Signal::TERM);
    terminal.wait_for_text("code 143");
    type_line(&terminal, "stty -a | grep -o ' icanon'");
    terminal.wait_for_text("\n icanon");
    assert_eq!(daemon.agent(&id)["exited_at"], Value::Null);
}

#[test]
fn detach_keys_can_be_set_and_input_refused() {
    let daemon = Daemon::start();
    let id = daemon.spawn(&["-t", "--", "cat"]);
    let terminal = open(
        &daemon,
        &format!("colibri attach --detach-keys ctrl-],q {id}"),
    );
    type_line(&terminal, "hello");
    terminal.wait_for_text("hello\nhello");
    terminal.press(&["C-]", "q"]);
    terminal.wait_for_text("detached");
    type_line(&terminal, &format!("clear; colibri attach --no-input {id}"));
    terminal.wait_for_text("hello\nhello");
    type_line(&terminal, "not sent");
    terminal.press(&["C-c"]);
    terminal.wait_for_text("detached");
    assert!(!text(&daemon.stdout(&id)).contains("not sent"));
    let output = daemon.cli(&["attach", "--detach-keys", "control-x", &id]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn attach_says_what_it_shows() {
    let daemon = Daemon::start();
    let id = daemon.spawn(&["--", "cat"]);
    let terminal = open_sized(&daemon, 120, 12, &format!("colibri attach {id}"));
    terminal.wait_for_text("its output is formatted; typed lines are prompts; Ctrl-C detaches");
    let script = "printf '\\033[31mred'; exit 3";
    let id = daemon.spawn(&["-t", "--", "sh", "-c", script]);
    let output = daemon.cli(&["attach", &id]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(text(&output.stdout), "\u{1b}[31mred");
    assert!(text(&output.stderr).contains("has a terminal: its output is printed unchanged"));
    // On a terminal, the last screen of an ended agent.
    let terminal = open(&daemon, &format!("colibri attach {id}; echo code $?"));
    terminal.wait_for_text("red\ncolibri:");
    terminal.wait_for_text("code 3");
}

#[test]
fn run_needs_a_terminal() {
    let daemon = Daemon::start();
    let output = daemon.cli(&["run", "-t", "--", "true"]);
    assert_eq!(output.status.code(), Some(2));
    let message = text(&output.stderr);
    assert!(
        message.contains("must be a terminal; leave out -t"),
        "{message}"
    );
    assert_eq!(daemon.agent_count(), 0);
    let output = daemon.cli(&["spawn", "-t", "--no-input", "--", "true"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn restarted_agent_keeps_the_size_and_gets_a_new_terminal() {
    let daemon = Daemon::start();
    let script = "stty size; read -r x; echo bye";
    let options = ["-t", "--restart", "always", "--restart-delay", "10ms"];
    let id = daemon.spawn(&[&options[..], &["--", "bash", "-c", script]].concat());
    let terminal = open_sized(&daemon, 90, 10, &format!("colibri attach {id}"));
    wait_until("the size", || {
        size_of(&daemon, &id) == (json!(10), json!(90))
    });
    terminal.press(&["Enter"]);
    terminal.wait_for_text("10 90");
    detach(&terminal);
    // The screen is that of the current run.
    type_line(&terminal, &format!("clear; colibri attach {id}"));
    let screen = terminal.wait_for_text("10 90");
    assert!(!screen.contains("bye"), "{screen}");
}

#[test]
fn wire_refuses_what_a_terminal_lacks() {
    let daemon = Daemon::start();
    let script = "trap 'stty size' WINCH; while :; do sleep 0.01; done";
    let with = daemon.spawn(&["-t", "--", "bash", "-c", script]);
    let without = daemon.spawn(&["--", "cat"]);
    assert_eq!(daemon.agent(&without)["terminal"], Value::Null);
    let mut wire = daemon.connect();
    let mut kind_of = |method: &str, params: Value| {
        let answer = wire.call(method, params);
        answer["error"]["data"]["kind"].clone()
    };
    let size = json!({"rows": 10, "cols": 20});
    assert_eq!(kind_of("close-input", json!({"id": with})), "has-terminal");
    assert_eq!(kind_of("close-input", json!({"id": without})), Value::Null);
    assert_eq!(
        kind_of("subscribe", json!({"id": without, "terminal": size})),
        "no-terminal"
    );
    assert_eq!(
        kind_of("subscribe", json!({"terminal": size})),
        "invalid-params"
    );
    let resize = |rows: i64| json!({"subscription": 0, "rows": rows, "cols": 20});
    assert_eq!(
        kind_of("resize-terminal", resize(10)),
        "unknown-subscription"
    );
    assert_eq!(kind_of("subscribe", json!({"id": with})), Value::Null);
    assert_eq!(kind_of("resize-terminal", resize(10)), "no-terminal");
    assert_eq!(
        kind_of("subscribe", json!({"id": with, "terminal": size})),
        Value::Null
    );
    for bad in [0, 1001, -1] {
        assert_eq!(kind_of("resize-terminal", resize(bad)), "invalid-params");
        let terminal = json!({"rows": bad});
        assert_eq!(
            kind_of(
                "spawn-agent",
                json!({"program": "true", "terminal": terminal})
            ),
            "invalid-params"
        );
    }
    let conflict = json!({"program": "true", "terminal": {}, "no_input": true});
    assert_eq!(kind_of("spawn-agent", conflict), "invalid-params");
    let resized = json!({"subscription": 1, "rows": 30, "cols": 40});
    assert_eq!(kind_of("resize-terminal", resized), Value::Null);
    wait_until("the size", || text(&daemon.stdout(&with)).contains("30 40"));
    assert_eq!(
        kind_of("unsubscribe", json!({"subscription": 1})),
        Value::Null
    );
    assert_eq!(size_of(&daemon, &with), (json!(30), json!(40)));
}

#[test]
fn input_and_output_are_the_bytes_of_the_terminal() {
    let daemon = Daemon::start();
    let id = daemon.spawn(&["-t", "--", "sh", "-c", "read -r x; echo got $x >&2; cat"]);
    daemon.cli_ok(&["send", &id, "line"]);
    // The end-of-file character.
    let mut wire = daemon.connect();
    wire.call("send-input", json!({"id": id, "data": "\u{4}"}));
    assert_eq!(daemon.wait(&id), Some(0));
    assert_eq!(text(&daemon.stdout(&id)), "line\r\ngot line\r\n");
    assert_eq!(daemon.agent(&id)["stderr_bytes"], 0);
}

#[test]
fn output_does_not_reach_the_clipboard_of_the_user() {
    let daemon = Daemon::start();
    let script = r"printf '\033]52;c;aGFybQ==\007\033Ptmux;\033\033]52;c;aGFybQ==\007\033\\\033[21tfin'; echo ished; sleep 1000";
    let terminal = Terminal::open(&daemon, 80, 12, &[]);
    // tmux keeps what a program writes to the clipboard in a buffer.
    type_line(
        &terminal,
        "tmux -L test set -g set-clipboard on; tmux -L test set -g allow-passthrough all; clear",
    );
    type_line(
        &terminal,
        r"printf '\033]52;c;c2FmZQ==\007'; tmux -L test show-buffer; echo",
    );
    terminal.wait_for_text("safe");
    type_line(
        &terminal,
        &format!("clear; colibri run -t -- bash -c \"{script}\""),
    );
    terminal.wait_for_text("finished");
    detach(&terminal);
    type_line(&terminal, "clear; tmux -L test show-buffer; echo");
    terminal.wait_for_text("safe\n");
}

/// What a sandboxed agent tries to reach the terminal of `colibri run -t`.
const ATTACK: &str = r##"
import fcntl, os, termios
user = os.environ["USER_TERMINAL"]
own = os.fstat(0)
for path in ["/dev/tty", "/dev/console"]:
    try:
        found = os.open(path, os.O_RDWR | os.O_NOCTTY)
    except OSError as error:
        print(path, error.strerror)
    else:
        print(path, "own" if termios.tcgetwinsize(found) == termios.tcgetwinsize(0) and os.tcgetpgrp(found) == os.getpgrp() else "BROKEN")
        os.close(found)
for descriptor in os.listdir("/proc/self/fd"):
    try:
        found = os.fstat(int(descriptor))
    except OSError:
        continue
    if os.isatty(int(descriptor)) and found.st_rdev != own.st_rdev:
        print("BROKEN descriptor", descriptor)
try:
    os.open(user, os.O_RDWR | os.O_NOCTTY)
    print("BROKEN opened", user)
except OSError as error:
    print("user terminal", error.strerror)
print("terminals", [name for name in os.listdir("/dev/pts") if name != "ptmx"])
try:
    fcntl.ioctl(0, termios.TIOCSTI, b"#")
    print("BROKEN injected")
except OSError as error:
    print("injection", error.strerror)
for process in os.listdir("/proc"):
    try:
        for descriptor in os.listdir(f"/proc/{process}/fd"):
            if os.readlink(f"/proc/{process}/fd/{descriptor}") == user:
                print("BROKEN process", process)
    except OSError:
        pass
print("end of attacks")
"##;

#[test]
fn sandbox_does_not_reach_the_terminal_of_the_user() {
    let daemon = Daemon::start();
    let attack = daemon.path("attack.py");
    fs::write(&attack, ATTACK).unwrap();
    let terminal = Terminal::open(&daemon, 100, 24, &[]);
    let mount = format!("{}:/tmp/attack.py:ro", attack.display());
    let command = format!(
        "clear; colibri run -t --jail-path / --mount {mount} --env USER_TERMINAL=$(tty) -- python3 /tmp/attack.py"
    );
    type_line(&terminal, &command);
    let screen = terminal.wait_for_text("end of attacks");
    assert!(!screen.contains("BROKEN"), "{screen}");
    for expected in [
        "/dev/tty own",
        "user terminal No such file or directory",
        "terminals []",
        "injection Operation not permitted",
    ] {
        assert!(screen.contains(expected), "{expected}:\n{screen}");
    }
}

#[test]
fn explained_sandbox_keeps_other_agents_from_terminals() {
    let daemon = Daemon::start();
    let explain = |options: &[&str]| {
        let words = [&["explain"], options, &["--jail-path", "/", "--", "true"]].concat();
        daemon.cli_ok(&words)
    };
    for options in [&[][..], &["-t"]] {
        assert!(explain(options).contains(" --new-session "));
    }
    assert!(explain(&["-t"]).contains(" enter --terminal "));
    assert!(!explain(&[]).contains("--terminal"));
    assert!(program("colibri").exists());
}

#[test]
fn killed_shim_leaves_no_process_of_the_terminal() {
    let daemon = Daemon::start();
    // Without the agent's id, in another process group, and without a reaction to the end of the terminal.
    let script = "set -m; env -i sh -c 'trap : HUP; while :; do sleep 0.01; done # left-over' & echo started; wait";
    let id = daemon.spawn(&["-t", "--", "bash", "-c", script]);
    wait_until("the processes", || {
        text(&daemon.stdout(&id)).contains("started") && !processes_with("left-over").is_empty()
    });
    let descendants = processes_with("# left-over");
    kill_9(daemon.shim_pid(&id));
    assert_eq!(daemon.wait(&id), Some(125));
    wait_until("the end of all processes", || {
        let left = processes_with("# left-over");
        !descendants.iter().any(|pid| left.contains(pid))
    });
}
