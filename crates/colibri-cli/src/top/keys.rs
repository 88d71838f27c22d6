//! Handles keys and pasted text.

use crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tui_input::Input;
use tui_input::InputRequest;
use tui_input::backend::crossterm::EventHandler;

use super::app::{Action, App, Mode};
use super::columns;

/// The help: keys and their effects.
pub(super) const HELP: [(&str, &str); 13] = [
    ("Up Down  J j", "select an agent"),
    ("PgUp PgDn", "one page up or down"),
    ("Home End", "first or last agent"),
    ("Enter a", "attach: follow its output; Ctrl-C returns"),
    ("p", "send it a prompt"),
    ("k", "kill it, after confirmation"),
    ("/", "filter by words in any column or the command"),
    ("Esc", "clear the filter"),
    ("s", "sort by the next column"),
    ("S", "reverse the order"),
    ("? h", "this help"),
    ("Ctrl-L", "redraw"),
    ("q Ctrl-C", "quit; agents keep running"),
];

/// The lines after the help.
pub(super) const NOTES: [&str; 2] = [
    "CPU is the share of one CPU; MEM is resident memory (RSS), of all",
    "processes of an agent. SINCE is how long it has been in its state.",
];

impl App {
    /// Handles a key or pasted text.
    pub(super) fn handle(&mut self, event: &Event) -> Option<Action> {
        match event {
            Event::Key(key) if key.kind != KeyEventKind::Release => self.key(*key),
            Event::Paste(text) => {
                self.paste(text);
                None
            }
            _ => None,
        }
    }

    fn key(&mut self, key: KeyEvent) -> Option<Action> {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            match key.code {
                KeyCode::Char('c') => return Some(Action::Quit),
                KeyCode::Char('z') => return Some(Action::Suspend),
                KeyCode::Char('l') => return Some(Action::Redraw),
                _ => {}
            }
        }
        match std::mem::take(&mut self.mode) {
            Mode::Table => self.table_key(key),
            Mode::Help => None,
            Mode::Filter(previous) => {
                match key.code {
                    KeyCode::Enter => {}
                    KeyCode::Esc => self.filter = previous.into(),
                    _ => {
                        self.filter.handle_event(&Event::Key(key));
                        self.mode = Mode::Filter(previous);
                    }
                }
                None
            }
            Mode::Prompt { id, mut line } => match key.code {
                KeyCode::Enter => {
                    let text = line.value_and_reset();
                    (!text.is_empty()).then_some(Action::Prompt { id, text })
                }
                KeyCode::Esc => None,
                _ => {
                    line.handle_event(&Event::Key(key));
                    self.mode = Mode::Prompt { id, line };
                    None
                }
            },
            Mode::Kill(id) => {
                let is_confirmed = matches!(key.code, KeyCode::Char('y' | 'Y'));
                self.message = Some(match is_confirmed {
                    true => format!("killing {id}: TERM, and KILL after 5 s"),
                    false => "not killed".to_owned(),
                });
                is_confirmed.then_some(Action::Kill(id))
            }
        }
    }

    fn table_key(&mut self, key: KeyEvent) -> Option<Action> {
        self.message = None;
        // Keys apply to the agents of the moment, not to those of the last frame.
        self.arrange();
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Up | KeyCode::Char('J') => self.move_selection(-1),
            KeyCode::Down | KeyCode::Char('j') => self.move_selection(1),
            KeyCode::Char('p') if control => self.move_selection(-1),
            KeyCode::Char('n') if control => self.move_selection(1),
            KeyCode::PageUp => self.move_selection(-self.page()),
            KeyCode::PageDown => self.move_selection(self.page()),
            KeyCode::Home => self.move_selection(isize::MIN),
            KeyCode::End => self.move_selection(isize::MAX),
            KeyCode::Char('q') => return Some(Action::Quit),
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.mode = Mode::Help,
            KeyCode::Char('s') => {
                self.sort = self.sort.next();
                self.descending = self.sort.descending();
            }
            KeyCode::Char('S') => self.descending = !self.descending,
            KeyCode::Char('/') => {
                let previous = self.filter.value().to_owned();
                self.mode = Mode::Filter(previous);
            }
            KeyCode::Esc => self.filter.reset(),
            KeyCode::Enter | KeyCode::Char('a') => {
                let selected = self.selected()?;
                return Some(Action::Attach(selected.agent.id.clone()));
            }
            KeyCode::Char('p') => {
                let id = self.selected_running()?;
                let line = Input::default();
                self.mode = Mode::Prompt { id, line };
            }
            KeyCode::Char('k') | KeyCode::Delete => {
                self.mode = Mode::Kill(self.selected_running()?);
            }
            _ => {}
        }
        None
    }

    /// Returns the id of the selected agent if it runs; otherwise shows that it has ended.
    fn selected_running(&mut self) -> Option<String> {
        let selected = self.selected()?;
        if selected.runs() {
            return Some(selected.agent.id.clone());
        }
        self.message = Some(format!("{} has ended", columns::name(selected)));
        None
    }

    /// Inserts pasted text into the edited line, as one line. In other modes it is ignored, so that it is not taken for
    /// keys.
    fn paste(&mut self, text: &str) {
        let line = match &mut self.mode {
            Mode::Filter(_) => &mut self.filter,
            Mode::Prompt { line, .. } => line,
            _ => return,
        };
        for c in text.trim_end_matches(['\n', '\r']).chars() {
            let c = if c.is_control() { ' ' } else { c };
            line.handle(InputRequest::InsertChar(c));
        }
    }
}
