//! Keys and news in, commands and screens out.

use colibri_client::{Agent, Notification, UsageResult};
use crossterm::event::{Event, KeyCode, KeyEvent, KeyModifiers};
use jiff::Timestamp;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use serde_json::{Value, json};

use super::app::{App, Command, Mode};
use super::columns::Column;
use super::view;

fn now() -> Timestamp {
    "2026-01-01T03:00:00Z".parse().unwrap()
}

fn agent(id: &str, more: Value) -> Agent {
    let mut agent = json!({"id": id, "name": null, "state": "working", "pid": 7, "program": "sh",
        "args": ["agent.sh"], "jail": null, "runtime": "generic", "run": 1,
        "started_at": format!("2026-01-01T00:00:{:02}Z", id.len() % 60), "stdout_bytes": 0, "stderr_bytes": 0});
    let fields = agent.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    serde_json::from_value(agent).unwrap()
}

/// Agents of all kinds, one of them hostile.
fn some() -> Vec<Agent> {
    let view = json!({"state": "working", "since": 0, "current_tool": "bash", "turns": 12, "input_tokens": 81_000,
        "output_tokens": 9_300, "cost_usd": 1.5, "last_error": "overloaded", "events": 9, "malformed_lines": 0});
    vec![
        agent(
            "aaaaaaaaaa",
            json!({"name": "night shift", "runtime": "pi", "view": view, "stdout_bytes": 123_456,
            "jail": {"path": "/"}, "started_at": "2026-01-01T02:00:00Z"}),
        ),
        agent(
            "bbbbbbbbbb",
            json!({"name": "ask me", "state": "blocked", "runtime": "pi", "view": view,
            "jail": {"name": "agents"}, "started_at": "2026-01-01T00:00:00Z"}),
        ),
        agent(
            "cccccccccc",
            json!({"name": "evil\u{1b}[2J\u{202e}\n日本語の名前はとても長い", "state": "error",
            "pid": null, "exited_at": "2026-01-01T02:59:59Z", "exit": {"signal": 9},
            "error": "killed by\u{7} the limit", "started_at": "2026-01-01T02:30:00Z"}),
        ),
        agent(
            "dddddddddd",
            json!({"state": "done", "pid": null, "exited_at": "2026-01-01T02:59:58Z",
            "exit": {"code": 0}, "started_at": "2026-01-01T02:59:00Z"}),
        ),
    ]
}

fn press(app: &mut App, code: KeyCode) -> Option<Command> {
    app.event(&Event::Key(KeyEvent::new(code, KeyModifiers::NONE)))
}

fn types(app: &mut App, text: &str) {
    for c in text.chars() {
        assert_eq!(press(app, KeyCode::Char(c)), None);
    }
}

fn control(app: &mut App, c: char) -> Option<Command> {
    app.event(&Event::Key(KeyEvent::new(
        KeyCode::Char(c),
        KeyModifiers::CONTROL,
    )))
}

fn selected(app: &App) -> &str {
    app.selected().map_or("nobody", |of| &of.agent.id[..1])
}

fn order(app: &mut App) -> String {
    app.fit(100);
    app.shown().map(|(of, _)| &of.agent.id[..1]).collect()
}

fn screen(app: &mut App, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    app.fit(view::rows(app, height));
    terminal
        .draw(|frame| view::draw(frame, app, now(), true))
        .unwrap();
    terminal.backend().to_string()
}

fn told(method: &str, params: Value) -> Notification {
    serde_json::from_value(json!({"method": method, "params": params})).unwrap()
}

#[test]
fn the_selection_moves_within_the_table_and_stays_with_its_agent() {
    let mut app = App::new(some());
    app.fit(2);
    for (code, expected) in [
        (KeyCode::Up, "a"),
        (KeyCode::Down, "b"),
        (KeyCode::Char('j'), "c"),
        (KeyCode::Char('J'), "b"),
        (KeyCode::PageDown, "d"),
        (KeyCode::Down, "d"),
        (KeyCode::PageUp, "b"),
        (KeyCode::Home, "a"),
        (KeyCode::End, "d"),
    ] {
        assert_eq!(press(&mut app, code), None);
        assert_eq!(selected(&app), expected, "{code:?}");
        app.fit(2);
        assert!(app.shown().any(|(_, marked)| marked), "it is seen");
    }
    assert_eq!(control(&mut app, 'p'), None);
    assert_eq!(selected(&app), "c");
    app.told(&told(
        "agent-removed",
        json!({"subscription": 0, "id": "cccccccccc"}),
    ));
    app.fit(2);
    assert_eq!(selected(&app), "d", "what has gone leaves its place");
    press(&mut app, KeyCode::Char('S'));
    app.fit(2);
    assert_eq!(selected(&app), "d", "it stays with its agent");
}

#[test]
fn every_column_sorts_and_is_reversed() {
    let mut app = App::new(some());
    app.told(&told(
        "agent-state",
        json!({"subscription": 0, "id": "aaaaaaaaaa", "state": "working",
        "since": "2026-01-01T00:30:00Z", "current_tool": "bash"}),
    ));
    app.told(&told(
        "agent-state",
        json!({"subscription": 0, "id": "bbbbbbbbbb", "state": "blocked",
        "since": "2026-01-01T02:30:00Z"}),
    ));
    let usage = |id: &str, cpu: u64| {
        json!({"id": id, "cpu_ms": cpu, "memory_bytes": cpu, "processes": 1,
        "stdout_bytes": cpu, "stderr_bytes": 0, "turns": cpu, "input_tokens": cpu, "output_tokens": 0, "cost_usd": cpu})
    };
    for (at_ms, cpu) in [(0, 0), (1000, 100)] {
        let measured: UsageResult = serde_json::from_value(json!({"at_ms": at_ms,
            "agents": [usage("aaaaaaaaaa", cpu), usage("bbbbbbbbbb", 2 * cpu)]}))
        .unwrap();
        app.measured(&measured);
    }
    for (column, expected) in [
        (Column::Age, "abcd"),
        (Column::Output, "bacd"),
        (Column::Turns, "bacd"),
        (Column::Tokens, "bacd"),
        (Column::Cost, "bacd"),
        (Column::Runtime, "cdab"),
        (Column::Jail, "cdab"),
        (Column::Name, "bdca"),
        (Column::Id, "abcd"),
        (Column::State, "bacd"),
        (Column::Since, "abdc"),
        (Column::Tool, "abcd"),
        (Column::Cpu, "bacd"),
        (Column::Memory, "bacd"),
        (Column::Age, "abcd"),
    ] {
        assert_eq!(app.sort, column);
        assert_eq!(order(&mut app), expected, "{column:?}");
        press(&mut app, KeyCode::Char('s'));
    }
    app.sort_by(Column::Age, false);
    press(&mut app, KeyCode::Char('S'));
    assert_eq!(order(&mut app), "badc", "running agents stay first");
}

#[test]
fn a_filter_is_typed_kept_and_taken_back() {
    let mut app = App::new(some());
    press(&mut app, KeyCode::Char('/'));
    types(&mut app, "PI");
    assert_eq!(order(&mut app), "ab");
    types(&mut app, " blocked");
    assert_eq!(order(&mut app), "b");
    assert_eq!(selected(&app), "b");
    press(&mut app, KeyCode::Enter);
    assert!(matches!(app.mode, Mode::Table));
    press(&mut app, KeyCode::Char('/'));
    types(&mut app, "q");
    assert_eq!(order(&mut app), "", "a q in it does not quit");
    assert_eq!(selected(&app), "nobody");
    for code in [
        KeyCode::Enter,
        KeyCode::Char('k'),
        KeyCode::Char('p'),
        KeyCode::Up,
        KeyCode::End,
    ] {
        assert_eq!(press(&mut app, code), None, "of nobody");
        assert!(matches!(app.mode, Mode::Table));
    }
    press(&mut app, KeyCode::Char('/'));
    press(&mut app, KeyCode::Backspace);
    press(&mut app, KeyCode::Enter);
    assert_eq!(order(&mut app), "b");
    press(&mut app, KeyCode::Char('/'));
    types(&mut app, "nothing");
    press(&mut app, KeyCode::Esc);
    assert_eq!(order(&mut app), "b", "the filter before");
    press(&mut app, KeyCode::Esc);
    assert_eq!(order(&mut app), "abcd");
}

#[test]
fn a_kill_takes_a_yes() {
    let mut app = App::new(some());
    for code in [
        KeyCode::Enter,
        KeyCode::Esc,
        KeyCode::Char('n'),
        KeyCode::Char('k'),
        KeyCode::Char(' '),
    ] {
        press(&mut app, KeyCode::Char('k'));
        assert!(matches!(&app.mode, Mode::Kill { id } if id == "aaaaaaaaaa"));
        assert_eq!(press(&mut app, code), None, "{code:?}");
        assert_eq!(app.message.as_deref(), Some("not killed"));
    }
    press(&mut app, KeyCode::Char('k'));
    app.event(&Event::Paste("y".into()));
    assert!(matches!(app.mode, Mode::Kill { .. }), "a paste is no yes");
    // What is asked for is what is killed, whatever is selected meanwhile.
    app.told(&told(
        "agent-removed",
        json!({"subscription": 0, "id": "aaaaaaaaaa"}),
    ));
    app.fit(5);
    assert_eq!(
        press(&mut app, KeyCode::Char('y')),
        Some(Command::Kill("aaaaaaaaaa".into()))
    );
    press(&mut app, KeyCode::End);
    press(&mut app, KeyCode::Char('k'));
    assert!(matches!(app.mode, Mode::Table), "it has ended");
    assert_eq!(app.message.as_deref(), Some("dddddddddd has ended"));
}

#[test]
fn a_prompt_is_edited_sent_and_given_up() {
    let mut app = App::new(some());
    press(&mut app, KeyCode::Char('p'));
    types(&mut app, "fix teh");
    control(&mut app, 'w');
    types(&mut app, "the test");
    press(&mut app, KeyCode::Home);
    types(&mut app, "q: ");
    press(&mut app, KeyCode::End);
    app.event(&Event::Paste(" and\nmore\u{1b}[2J\n".into()));
    let text = "q: fix the test and more [2J".to_owned();
    assert_eq!(
        press(&mut app, KeyCode::Enter),
        Some(Command::Prompt {
            id: "aaaaaaaaaa".into(),
            text
        })
    );
    for end in [KeyCode::Enter, KeyCode::Esc] {
        press(&mut app, KeyCode::Char('p'));
        assert_eq!(press(&mut app, end), None, "nothing to send");
        assert!(matches!(app.mode, Mode::Table));
    }
    app.event(&Event::Paste("qky".into()));
    assert!(matches!(app.mode, Mode::Table), "no keys");
}

#[test]
fn other_keys_are_commands() {
    let mut app = App::new(some());
    for (code, expected) in [
        (KeyCode::Char('q'), Some(Command::Quit)),
        (
            KeyCode::Char('a'),
            Some(Command::Attach("aaaaaaaaaa".into())),
        ),
        (KeyCode::Enter, Some(Command::Attach("aaaaaaaaaa".into()))),
        (KeyCode::Char('x'), None),
        (KeyCode::Char('?'), None),
    ] {
        assert_eq!(press(&mut app, code), expected, "{code:?}");
    }
    assert!(matches!(app.mode, Mode::Help));
    assert_eq!(
        press(&mut app, KeyCode::Char('q')),
        None,
        "ends the help only"
    );
    for (c, expected) in [
        ('c', Command::Quit),
        ('z', Command::Suspend),
        ('l', Command::Redraw),
    ] {
        press(&mut app, KeyCode::Char('p'));
        assert_eq!(control(&mut app, c), Some(expected));
    }
}

#[test]
fn usage_is_asked_for_of_what_is_seen_or_sorts() {
    let mut agents = some();
    let more = |n: u32| {
        agent(
            &format!("e{n:09}"),
            json!({"started_at": "2026-01-01T02:59:59Z"}),
        )
    };
    agents.extend((0..1000).map(more));
    let mut app = App::new(agents);
    app.fit(10);
    assert_eq!(app.to_measure().len(), 10, "running agents come first");
    app.sort_by(Column::Cpu, true);
    app.fit(10);
    assert_eq!(app.to_measure().len(), 1002);
    assert_eq!(app.shown().count(), 10);
}

#[test]
fn a_new_agent_is_asked_for_and_comes_in() {
    let mut app = App::new(Vec::new());
    let event = told(
        "agent-state",
        json!({"subscription": 0, "id": "aaaaaaaaaa", "state": "working",
        "since": "2026-01-01T00:30:00Z"}),
    );
    assert_eq!(app.told(&event), Some(Command::Ask("aaaaaaaaaa".into())));
    app.agent(some().remove(0));
    assert_eq!(order(&mut app), "a");
    assert_eq!(selected(&app), "a");
}

#[test]
fn screens() {
    let mut app = App::new(some());
    let mut shown = String::new();
    let mut show = |what: &str, app: &mut App, width, height| {
        shown.push_str(&format!(
            "---- {what} {width}x{height}\n{}",
            screen(app, width, height)
        ));
    };
    show("table", &mut app, 80, 16);
    show("table", &mut app, 140, 16);
    press(&mut app, KeyCode::End);
    press(&mut app, KeyCode::Up);
    show("hostile", &mut app, 80, 16);
    show("low", &mut app, 60, 9);
    for height in [5, 3, 2, 1] {
        show("lower", &mut app, 22, height);
    }
    press(&mut app, KeyCode::Home);
    press(&mut app, KeyCode::Char('k'));
    show("kill", &mut app, 80, 5);
    press(&mut app, KeyCode::Char('n'));
    press(&mut app, KeyCode::Char('p'));
    types(
        &mut app,
        "a long line that does not fit into what is left of the screen",
    );
    show("prompt", &mut app, 50, 5);
    press(&mut app, KeyCode::Esc);
    app.lost("no daemon listens");
    show("lost", &mut app, 80, 6);
    press(&mut app, KeyCode::Char('?'));
    show("help", &mut app, 80, 20);
    show("nobody", &mut App::new(Vec::new()), 80, 5);
    insta::assert_snapshot!(shown);
}

#[test]
fn no_screen_is_too_small() {
    let modes: [&[KeyCode]; 5] = [
        &[],
        &[KeyCode::Char('?')],
        &[KeyCode::Char('/'), KeyCode::Char('日')],
        &[KeyCode::Char('p'), KeyCode::Char('本')],
        &[KeyCode::Char('k')],
    ];
    for keys in modes {
        let mut app = App::new(some());
        for code in keys {
            press(&mut app, *code);
        }
        for width in (1..30).chain([79, 80, 200]) {
            for height in 1..25 {
                screen(&mut app, width, height);
            }
        }
    }
}

#[test]
fn colour_is_left_out_where_it_is_not_wanted() {
    use ratatui::style::Color;
    for in_colour in [true, false] {
        let mut app = App::new(some());
        app.fit(10);
        let mut terminal = Terminal::new(TestBackend::new(80, 16)).unwrap();
        for lost in [false, true] {
            if lost {
                app.lost("gone");
            }
            let frame = terminal.draw(|frame| view::draw(frame, &app, now(), in_colour));
            let cells = &frame.unwrap().buffer.content;
            let any = cells
                .iter()
                .any(|cell| (cell.fg, cell.bg) != (Color::Reset, Color::Reset));
            assert_eq!(any, in_colour, "lost: {lost}");
        }
    }
}
