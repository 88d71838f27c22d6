//! Tests of the model: keys and updates as input, commands and screens as output.

use colibri_client::{Agent, Notification, UsageResult};
use crossterm::event::{Event, KeyCode, KeyEvent, KeyModifiers};
use jiff::Timestamp;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use serde_json::{Value, json};

use super::app::{Action, App, Mode};
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

/// Agents in various states, one with a hostile name.
fn sample_agents() -> Vec<Agent> {
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

fn press(app: &mut App, code: KeyCode) -> Option<Action> {
    app.handle(&Event::Key(KeyEvent::new(code, KeyModifiers::NONE)))
}

fn type_text(app: &mut App, text: &str) {
    for c in text.chars() {
        assert_eq!(press(app, KeyCode::Char(c)), None);
    }
}

fn control(app: &mut App, c: char) -> Option<Action> {
    app.handle(&Event::Key(KeyEvent::new(
        KeyCode::Char(c),
        KeyModifiers::CONTROL,
    )))
}

fn selected(app: &App) -> &str {
    app.selected().map_or("none", |entry| &entry.agent.id[..1])
}

fn order(app: &mut App) -> String {
    app.layout(100);
    app.visible()
        .map(|(entry, _)| &entry.agent.id[..1])
        .collect()
}

fn screen(app: &mut App, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    app.layout(view::rows(app, height));
    terminal
        .draw(|frame| view::draw(frame, app, now(), true))
        .unwrap();
    terminal.backend().to_string()
}

fn event(method: &str, params: Value) -> Notification {
    serde_json::from_value(json!({"method": method, "params": params})).unwrap()
}

#[test]
fn selection_moves_within_the_table_and_follows_its_agent() {
    let mut app = App::new(sample_agents());
    app.layout(2);
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
        app.layout(2);
        assert!(app.visible().any(|(_, marked)| marked), "it is visible");
    }
    assert_eq!(control(&mut app, 'p'), None);
    assert_eq!(selected(&app), "c");
    app.roster.apply(&event(
        "agent-removed",
        json!({"subscription": 0, "id": "cccccccccc"}),
    ));
    app.layout(2);
    assert_eq!(
        selected(&app),
        "d",
        "the selection stays in the row of a removed agent"
    );
    press(&mut app, KeyCode::Char('S'));
    app.layout(2);
    assert_eq!(selected(&app), "d", "the selection follows its agent");
}

#[test]
fn each_column_sorts_in_both_orders() {
    let mut app = App::new(sample_agents());
    app.roster.apply(&event(
        "agent-state",
        json!({"subscription": 0, "id": "aaaaaaaaaa", "state": "working",
        "since": "2026-01-01T00:30:00Z", "current_tool": "bash"}),
    ));
    app.roster.apply(&event(
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
        app.roster.apply_usage(&measured);
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
    (app.sort, app.descending) = (Column::Age, false);
    press(&mut app, KeyCode::Char('S'));
    assert_eq!(order(&mut app), "badc", "running agents stay first");
}

#[test]
fn filter_is_edited_applied_and_cleared() {
    let mut app = App::new(sample_agents());
    press(&mut app, KeyCode::Char('/'));
    type_text(&mut app, "PI");
    assert_eq!(order(&mut app), "ab");
    type_text(&mut app, " blocked");
    assert_eq!(order(&mut app), "b");
    assert_eq!(selected(&app), "b");
    press(&mut app, KeyCode::Enter);
    assert!(matches!(app.mode, Mode::Table));
    press(&mut app, KeyCode::Char('/'));
    type_text(&mut app, "q");
    assert_eq!(order(&mut app), "", "q in the filter does not quit");
    assert_eq!(selected(&app), "none");
    for code in [
        KeyCode::Enter,
        KeyCode::Char('k'),
        KeyCode::Char('p'),
        KeyCode::Up,
        KeyCode::End,
    ] {
        assert_eq!(press(&mut app, code), None, "without a selection");
        assert!(matches!(app.mode, Mode::Table));
    }
    press(&mut app, KeyCode::Char('/'));
    press(&mut app, KeyCode::Backspace);
    press(&mut app, KeyCode::Enter);
    assert_eq!(order(&mut app), "b");
    press(&mut app, KeyCode::Char('/'));
    type_text(&mut app, "nothing");
    press(&mut app, KeyCode::Esc);
    assert_eq!(order(&mut app), "b", "the previous filter");
    press(&mut app, KeyCode::Esc);
    assert_eq!(order(&mut app), "abcd");
}

#[test]
fn kill_needs_confirmation() {
    let mut app = App::new(sample_agents());
    for code in [
        KeyCode::Enter,
        KeyCode::Esc,
        KeyCode::Char('n'),
        KeyCode::Char('k'),
        KeyCode::Char(' '),
    ] {
        press(&mut app, KeyCode::Char('k'));
        assert!(matches!(&app.mode, Mode::Kill(id) if id == "aaaaaaaaaa"));
        assert_eq!(press(&mut app, code), None, "{code:?}");
        assert_eq!(app.message.as_deref(), Some("not killed"));
    }
    press(&mut app, KeyCode::Char('k'));
    app.handle(&Event::Paste("y".into()));
    assert!(
        matches!(app.mode, Mode::Kill(_)),
        "pasted text does not confirm"
    );
    // The agent of the question is killed, even if another one is selected meanwhile.
    app.roster.apply(&event(
        "agent-removed",
        json!({"subscription": 0, "id": "aaaaaaaaaa"}),
    ));
    app.layout(5);
    assert_eq!(
        press(&mut app, KeyCode::Char('y')),
        Some(Action::Kill("aaaaaaaaaa".into()))
    );
    press(&mut app, KeyCode::End);
    press(&mut app, KeyCode::Char('k'));
    assert!(matches!(app.mode, Mode::Table), "it has ended");
    assert_eq!(app.message.as_deref(), Some("dddddddddd has ended"));
}

#[test]
fn prompt_is_edited_sent_and_cancelled() {
    let mut app = App::new(sample_agents());
    press(&mut app, KeyCode::Char('p'));
    type_text(&mut app, "fix teh");
    control(&mut app, 'w');
    type_text(&mut app, "the test");
    press(&mut app, KeyCode::Home);
    type_text(&mut app, "q: ");
    press(&mut app, KeyCode::End);
    app.handle(&Event::Paste(" and\nmore\u{1b}[2J\n".into()));
    let text = "q: fix the test and more [2J".to_owned();
    assert_eq!(
        press(&mut app, KeyCode::Enter),
        Some(Action::Prompt {
            id: "aaaaaaaaaa".into(),
            text
        })
    );
    for end in [KeyCode::Enter, KeyCode::Esc] {
        press(&mut app, KeyCode::Char('p'));
        assert_eq!(press(&mut app, end), None, "nothing to send");
        assert!(matches!(app.mode, Mode::Table));
    }
    app.handle(&Event::Paste("qky".into()));
    assert!(
        matches!(app.mode, Mode::Table),
        "pasted text is not taken for keys"
    );
}

#[test]
fn other_keys_return_commands() {
    let mut app = App::new(sample_agents());
    for (code, expected) in [
        (KeyCode::Char('q'), Some(Action::Quit)),
        (
            KeyCode::Char('a'),
            Some(Action::Attach("aaaaaaaaaa".into())),
        ),
        (KeyCode::Enter, Some(Action::Attach("aaaaaaaaaa".into()))),
        (KeyCode::Char('x'), None),
        (KeyCode::Char('?'), None),
    ] {
        assert_eq!(press(&mut app, code), expected, "{code:?}");
    }
    assert!(matches!(app.mode, Mode::Help));
    assert_eq!(
        press(&mut app, KeyCode::Char('q')),
        None,
        "closes the help only"
    );
    for (c, expected) in [
        ('c', Action::Quit),
        ('z', Action::Suspend),
        ('l', Action::Redraw),
    ] {
        press(&mut app, KeyCode::Char('p'));
        assert_eq!(control(&mut app, c), Some(expected));
    }
}

#[test]
fn usage_is_measured_for_visible_or_sorted_agents() {
    let mut agents = sample_agents();
    let more = |n: u32| {
        agent(
            &format!("e{n:09}"),
            json!({"started_at": "2026-01-01T02:59:59Z"}),
        )
    };
    agents.extend((0..1000).map(more));
    let mut app = App::new(agents);
    app.layout(10);
    assert_eq!(app.ids_to_measure().len(), 10, "running agents come first");
    app.sort = Column::Cpu;
    app.layout(10);
    assert_eq!(app.ids_to_measure().len(), 1002);
    assert_eq!(app.visible().count(), 10);
}

#[test]
fn new_agent_is_requested_and_added() {
    let mut app = App::new(Vec::new());
    let event = event(
        "agent-state",
        json!({"subscription": 0, "id": "aaaaaaaaaa", "state": "working",
        "since": "2026-01-01T00:30:00Z"}),
    );
    assert_eq!(app.roster.apply(&event).as_deref(), Some("aaaaaaaaaa"));
    app.roster.insert(sample_agents().remove(0));
    assert_eq!(order(&mut app), "a");
    assert_eq!(selected(&app), "a");
}

#[test]
fn screens() {
    let mut app = App::new(sample_agents());
    let mut shown = String::new();
    let mut show = |title: &str, app: &mut App, width, height| {
        shown.push_str(&format!(
            "---- {title} {width}x{height}\n{}",
            screen(app, width, height)
        ));
    };
    show("table", &mut app, 80, 16);
    show("table", &mut app, 140, 16);
    press(&mut app, KeyCode::End);
    press(&mut app, KeyCode::Up);
    show("hostile", &mut app, 80, 16);
    show("few rows", &mut app, 60, 9);
    for height in [5, 3, 2, 1] {
        show("fewer rows", &mut app, 22, height);
    }
    press(&mut app, KeyCode::Home);
    press(&mut app, KeyCode::Char('k'));
    show("kill", &mut app, 80, 5);
    press(&mut app, KeyCode::Char('n'));
    press(&mut app, KeyCode::Char('p'));
    type_text(
        &mut app,
        "a long line that does not fit into what is left of the screen",
    );
    show("prompt", &mut app, 50, 5);
    press(&mut app, KeyCode::Esc);
    app.lost = Some("no daemon listens".into());
    show("lost", &mut app, 80, 6);
    press(&mut app, KeyCode::Char('?'));
    show("help", &mut app, 80, 20);
    show("empty", &mut App::new(Vec::new()), 80, 5);
    insta::assert_snapshot!(shown);
}

#[test]
fn tiny_screen_is_drawn_without_panic() {
    let modes: [&[KeyCode]; 5] = [
        &[],
        &[KeyCode::Char('?')],
        &[KeyCode::Char('/'), KeyCode::Char('日')],
        &[KeyCode::Char('p'), KeyCode::Char('本')],
        &[KeyCode::Char('k')],
    ];
    for keys in modes {
        let mut app = App::new(sample_agents());
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
fn screen_without_colour_has_none() {
    use ratatui::style::Color;
    for in_colour in [true, false] {
        let mut app = App::new(sample_agents());
        app.layout(10);
        let mut terminal = Terminal::new(TestBackend::new(80, 16)).unwrap();
        for lost in [false, true] {
            if lost {
                app.lost = Some("stopped".into());
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
