//! What each key does.

use crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tui_input::Input;
use tui_input::InputRequest;
use tui_input::backend::crossterm::EventHandler;

use super::app::{App, Command, Mode};
use super::columns;

/// For people: keys and what they do.
pub(super) const HELP: [(&str, &str); 13] = [
    ("Up Down  J j", "select an agent"),
    ("PgUp PgDn", "a screen up or down"),
    ("Home End", "the first or last agent"),
    ("Enter a", "attach: follow its output; Ctrl-C comes back"),
    ("p", "prompt: send it a line"),
    ("k", "kill it, after a question"),
    ("/", "filter by words of any column or the command"),
    ("Esc", "end the filter"),
    ("s", "sort by the next column"),
    ("S", "reverse the order"),
    ("? h", "this help"),
    ("Ctrl-L", "draw anew"),
    ("q Ctrl-C", "quit; agents go on"),
];

impl App {
    /// A key, or text that was pasted.
    pub(super) fn event(&mut self, event: &Event) -> Option<Command> {
        match event {
            Event::Key(key) if key.kind != KeyEventKind::Release => self.key(*key),
            Event::Paste(text) => {
                self.paste(text);
                None
            }
            _ => None,
        }
    }

    fn key(&mut self, key: KeyEvent) -> Option<Command> {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            match key.code {
                KeyCode::Char('c') => return Some(Command::Quit),
                KeyCode::Char('z') => return Some(Command::Suspend),
                KeyCode::Char('l') => return Some(Command::Redraw),
                _ => {}
            }
        }
        match std::mem::take(&mut self.mode) {
            Mode::Table => self.table_key(key),
            Mode::Help => None,
            Mode::Filter { before } => {
                match key.code {
                    KeyCode::Enter => {}
                    KeyCode::Esc => self.filter = before.into(),
                    _ => {
                        self.filter.handle_event(&Event::Key(key));
                        self.mode = Mode::Filter { before };
                    }
                }
                self.filtered();
                None
            }
            Mode::Prompt { id, mut line } => match key.code {
                KeyCode::Enter => {
                    let text = line.value_and_reset();
                    (!text.is_empty()).then_some(Command::Prompt { id, text })
                }
                KeyCode::Esc => None,
                _ => {
                    line.handle_event(&Event::Key(key));
                    self.mode = Mode::Prompt { id, line };
                    None
                }
            },
            Mode::Kill { id } => {
                let yes = matches!(key.code, KeyCode::Char('y' | 'Y'));
                self.say(if yes {
                    format!("killing {id}: TERM, and KILL after 5 s")
                } else {
                    "not killed".to_owned()
                });
                yes.then_some(Command::Kill(id))
            }
        }
    }

    fn table_key(&mut self, key: KeyEvent) -> Option<Command> {
        self.message = None;
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Up | KeyCode::Char('J') => self.step(-1),
            KeyCode::Down | KeyCode::Char('j') => self.step(1),
            KeyCode::Char('p') if control => self.step(-1),
            KeyCode::Char('n') if control => self.step(1),
            KeyCode::PageUp => self.step(-self.page()),
            KeyCode::PageDown => self.step(self.page()),
            KeyCode::Home => self.step(isize::MIN),
            KeyCode::End => self.step(isize::MAX),
            KeyCode::Char('q') => return Some(Command::Quit),
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.mode = Mode::Help,
            KeyCode::Char('s') => {
                let column = self.sort.next();
                self.sort_by(column, column.descending());
            }
            KeyCode::Char('S') => self.sort_by(self.sort, !self.descending),
            KeyCode::Char('/') => {
                let before = self.filter.value().to_owned();
                self.mode = Mode::Filter { before };
            }
            KeyCode::Esc => {
                self.filter.reset();
                self.filtered();
            }
            KeyCode::Enter | KeyCode::Char('a') => {
                let selected = self.selected()?;
                return Some(Command::Attach(selected.agent.id.clone()));
            }
            KeyCode::Char('p') => {
                if let Some(id) = self.running() {
                    let line = Input::default();
                    self.mode = Mode::Prompt { id, line };
                }
            }
            KeyCode::Char('k') | KeyCode::Delete => {
                if let Some(id) = self.running() {
                    self.mode = Mode::Kill { id };
                }
            }
            _ => {}
        }
        None
    }

    /// The selected agent if it runs, and else a word about it.
    fn running(&mut self) -> Option<String> {
        let selected = self.selected()?;
        if selected.runs() {
            return Some(selected.agent.id.clone());
        }
        let message = format!("{} has ended", columns::name(selected));
        self.say(message);
        None
    }

    /// Text for the line that is typed, as one line. Anywhere else it would be keys, and is none.
    fn paste(&mut self, text: &str) {
        let line = match &mut self.mode {
            Mode::Filter { .. } => &mut self.filter,
            Mode::Prompt { line, .. } => line,
            _ => return,
        };
        for c in text.trim_end_matches(['\n', '\r']).chars() {
            let c = if c.is_control() { ' ' } else { c };
            line.handle(InputRequest::InsertChar(c));
        }
        self.filtered();
    }
}
