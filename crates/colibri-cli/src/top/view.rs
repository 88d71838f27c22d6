//! Draws the model. Does no I/O. A small screen shows, by priority, the table, the line of keys, the line of counts, the
//! titles, and the details of the selected agent.

use colibri_client::{AgentEntry, AgentState};
use jiff::Timestamp;
use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};
use ratatui::style::{Color, Modifier, Style};

use super::app::{App, Mode};
use super::columns::{self, Column, PlacedColumn};
use super::keys::{HELP, NOTES};
use crate::output::sanitize;
use crate::tables::{command, short_exit};

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const DIM: Style = Style::new().add_modifier(Modifier::DIM);

/// Returns the parts of the screen from top to bottom: counts, titles, table, details, and the line of keys or the edited
/// line. A part without room has no height.
fn parts(app: &App, area: Rect) -> [Rect; 5] {
    let is_editing = !matches!(app.mode, Mode::Table | Mode::Help);
    let counts = u16::from(area.height >= 3);
    let titles = u16::from(area.height >= 4);
    let details = match area.height {
        0..8 => 0,
        8..14 => 1,
        14..20 => 3,
        _ => 5,
    };
    let foot = u16::from(area.height >= 2 || is_editing);
    let table = area.height.saturating_sub(counts + titles + details + foot);
    let mut y = 0;
    [counts, titles, table, details, foot].map(|height| {
        let part = Rect { y, height, ..area };
        y += height;
        part
    })
}

/// Returns the number of rows of the table on a screen of this height.
pub(super) fn rows(app: &App, height: u16) -> usize {
    let [_, _, table, ..] = parts(app, Rect::new(0, 0, 1, height));
    usize::from(table.height)
}

/// Draws the screen.
pub(super) fn draw(frame: &mut Frame<'_>, app: &App, now: Timestamp, in_colour: bool) {
    let area = frame.area();
    let mut pen = Pen {
        buffer: frame.buffer_mut(),
        area,
        in_colour,
    };
    if matches!(app.mode, Mode::Help) {
        return pen.help();
    }
    let [counts, titles, table, details, foot] = parts(app, area);
    if !counts.is_empty() {
        pen.counts(counts.y, app);
    }
    pen.table(titles, table, app, now);
    if !details.is_empty()
        && let Some(selected) = app.selected()
    {
        pen.details(details, selected);
    }
    if !foot.is_empty()
        && let Some(cursor) = pen.foot(foot.y, app)
    {
        frame.set_cursor_position(cursor);
    }
}

/// The states in the order of their counts.
const STATES: [AgentState; 7] = [
    AgentState::Blocked,
    AgentState::Stalled,
    AgentState::Error,
    AgentState::Working,
    AgentState::Starting,
    AgentState::Idle,
    AgentState::Done,
];

struct Pen<'a> {
    buffer: &'a mut Buffer,
    area: Rect,
    in_colour: bool,
}

impl Pen<'_> {
    /// Writes text into at most `width` cells, and nothing outside the screen.
    fn put(&mut self, x: u16, y: u16, width: u16, text: &str, style: Style) {
        if x >= self.area.width || y >= self.area.height {
            return;
        }
        let width = width.min(self.area.width - x);
        self.buffer
            .set_stringn(x, y, text, usize::from(width), style);
    }

    fn line(&mut self, y: u16, text: &str, style: Style) {
        self.put(0, y, self.area.width, text, style);
    }

    fn colour(&self, colour: Color) -> Style {
        match self.in_colour {
            true => Style::new().fg(colour),
            false => Style::new(),
        }
    }

    fn state(&self, state: AgentState) -> Style {
        match state {
            AgentState::Starting => self.colour(Color::Cyan),
            AgentState::Idle => Style::new(),
            AgentState::Working => self.colour(Color::Green),
            AgentState::Blocked => self.colour(Color::Yellow).add_modifier(Modifier::BOLD),
            AgentState::Stalled => self.colour(Color::Magenta).add_modifier(Modifier::BOLD),
            AgentState::Done => DIM,
            AgentState::Error => self.colour(Color::Red).add_modifier(Modifier::BOLD),
        }
    }

    /// Draws the numbers of agents by state, or the reason of a lost connection.
    fn counts(&mut self, y: u16, app: &App) {
        if let Some(reason) = &app.lost {
            let style = self
                .colour(Color::Red)
                .add_modifier(Modifier::BOLD | Modifier::REVERSED);
            let text = format!("no connection, reconnecting: {}", sanitize(reason, 200));
            return self.line(y, &text, style);
        }
        let all = app.roster.iter().count();
        let mut text = counted(all as u64, "agent", "agents");
        if !app.filter.value().is_empty() {
            text.push_str(&format!(", {} shown", app.count()));
        }
        self.line(y, &text, BOLD);
        let mut x = cells(&text);
        for state in STATES {
            let has_state = |entry: &&AgentEntry| entry.agent.state == state;
            let count = app.roster.iter().filter(has_state).count();
            if count > 0 {
                let text = format!("{count} {state}");
                self.put(x + 2, y, self.area.width, &text, self.state(state));
                x += 2 + cells(&text);
            }
        }
    }

    fn table(&mut self, titles: Rect, table: Rect, app: &App, now: Timestamp) {
        let placed = columns::fitting(self.area.width);
        let with_id = placed.iter().any(|placed| placed.column == Column::Id);
        if !titles.is_empty() {
            for PlacedColumn { column, x, width } in &placed {
                let style = match *column == app.sort {
                    true => BOLD.add_modifier(Modifier::UNDERLINED),
                    false => BOLD,
                };
                self.cell(*column, *x, titles.y, *width, column.title(), style);
            }
        }
        if app.count() == 0 && !table.is_empty() {
            let text = match app.roster.iter().next() {
                None => "no agents; start one with colibri spawn",
                Some(_) => "no agent matches the filter; clear it with Esc",
            };
            return self.line(table.y, text, Style::new());
        }
        for ((entry, selected), y) in app.visible().zip(table.y..table.bottom()) {
            for PlacedColumn { column, x, width } in &placed {
                let style = match column {
                    Column::State => self.state(entry.agent.state),
                    _ if !entry.runs() => DIM,
                    _ => Style::new(),
                };
                let text = column.text(entry, now, with_id);
                self.cell(*column, *x, y, *width, &text, style);
            }
            let row = Rect {
                y,
                height: 1,
                ..table
            };
            if app.lost.is_some() {
                let grey = self.colour(Color::DarkGray).add_modifier(Modifier::DIM);
                self.buffer.set_style(row, grey);
            }
            if selected {
                self.buffer
                    .set_style(row, Style::new().add_modifier(Modifier::REVERSED));
            }
        }
    }

    /// Draws a cell: numbers right-aligned, other text left-aligned, truncated with an ellipsis.
    fn cell(&mut self, column: Column, x: u16, y: u16, width: u16, text: &str, style: Style) {
        let text = sanitize(text, usize::from(width));
        let free = match column.is_number() {
            true => width.saturating_sub(cells(&text)),
            false => 0,
        };
        self.put(x + free, y, width - free, &text, style);
    }

    /// Draws the details of an agent: names and usage, command, last error.
    fn details(&mut self, area: Rect, entry: &AgentEntry) {
        let Rect { y, height, .. } = area;
        let agent = &entry.agent;
        let mut parts = vec![columns::name(entry).to_owned()];
        if agent.name.is_some() {
            parts.push(agent.id.clone());
        }
        match (agent.pid, entry.runs()) {
            (Some(pid), true) => parts.push(format!("pid {pid}")),
            (None, true) => parts.push("between runs".to_owned()),
            (_, false) => parts.push(short_exit(agent.exit)),
        }
        if agent.run > 1 {
            parts.push(format!("run {}", agent.run));
        }
        if let Some(usage) = &entry.usage {
            parts.push(counted(usage.processes.into(), "process", "processes"));
        }
        if let Some(view) = &agent.view {
            parts.push(counted(view.turns, "turn", "turns"));
            let [read, written] = [view.input_tokens, view.output_tokens].map(columns::short_count);
            parts.push(format!("{read}+{written} tokens"));
            parts.push(columns::cost(view.cost_usd));
        }
        let summary: Vec<_> = parts.iter().map(|part| sanitize(part, 60)).collect();
        let error = entry
            .last_error
            .as_deref()
            .map(|error| format!("error: {}", sanitize(error, 300)));
        let summary = summary.join("  ");
        let red = self.colour(Color::Red);
        if height < 3 {
            return match error {
                Some(error) => self.line(y, &error, red),
                None => self.line(y, &summary, Style::new()),
            };
        }
        self.line(y, &summary, BOLD);
        let command = format!("$ {}", sanitize(&command(agent), 400));
        self.line(y + 1, &command, Style::new());
        let error = error.unwrap_or_default();
        let mut left = error.as_str();
        for y in y + 2..y + height {
            let (line, rest) = left.split_at(fitting(left, self.area.width));
            self.line(y, line, red);
            left = rest;
        }
    }

    /// Draws the last line; returns the position of its cursor.
    fn foot(&mut self, y: u16, app: &App) -> Option<Position> {
        let name = |id: &str| {
            let entry = app.roster.get(id);
            match entry.map_or(id, columns::name) {
                name if name == id => id.to_owned(),
                name => format!("{} ({id})", sanitize(name, 30)),
            }
        };
        match &app.mode {
            Mode::Kill { id } => {
                let text = format!("kill {}? y/N ", name(id));
                self.line(y, &text, BOLD);
                Some(self.cursor(cells(&text), y))
            }
            Mode::Prompt { id, line } => {
                Some(self.edited(y, &format!("prompt {}: ", name(id)), line))
            }
            Mode::Filter { .. } => Some(self.edited(y, "filter: ", &app.filter)),
            Mode::Table | Mode::Help => {
                match &app.message {
                    Some(message) => self.line(y, &sanitize(message, 400), BOLD),
                    None => {
                        let order = if app.descending { "down" } else { "up" };
                        let sorted = app.sort.title();
                        let filter = match app.filter.value() {
                            "" => "/ filter".to_owned(),
                            filter => format!("/ {}  Esc clear", sanitize(filter, 20)),
                        };
                        let text = format!(
                            "a attach  p prompt  k kill  s by {sorted} {order}  {filter}  ? help  q quit"
                        );
                        self.line(y, &text, Style::new());
                    }
                }
                None
            }
        }
    }

    /// Draws an edited line; of a long line the part around the cursor.
    fn edited(&mut self, y: u16, label: &str, line: &tui_input::Input) -> Position {
        // Half of a narrow screen is left for the text.
        let label_width = cells(label).min(self.area.width / 2);
        self.put(0, y, label_width, label, BOLD);
        let room = self.area.width.saturating_sub(label_width + 1);
        let scroll = line.visual_scroll(usize::from(room));
        let mut hidden = 0;
        let visible = line.value().trim_start_matches(|c: char| {
            let hide = hidden < scroll;
            hidden += usize::from(cells(c.encode_utf8(&mut [0; 4])));
            hide
        });
        self.put(label_width, y, self.area.width, visible, Style::new());
        let at = line.visual_cursor().saturating_sub(scroll);
        let at = u16::try_from(at).unwrap_or(u16::MAX);
        self.cursor(label_width.saturating_add(at), y)
    }

    fn cursor(&self, x: u16, y: u16) -> Position {
        Position::new(x.min(self.area.width.saturating_sub(1)), y)
    }

    fn help(&mut self) {
        self.line(0, "colibri top: keys (any key closes the help)", BOLD);
        for ((keys, effect), y) in HELP.iter().zip(2..) {
            self.put(0, y, 16, keys, BOLD);
            self.put(16, y, self.area.width, effect, Style::new());
        }
        for (text, y) in NOTES.iter().zip(16..) {
            self.line(y, text, Style::new());
        }
    }
}

fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// Returns how many bytes of a text fit into `width` cells.
fn fitting(text: &str, width: u16) -> usize {
    let mut used = 0;
    text.char_indices()
        .find(|(_, c)| {
            used += cells(c.encode_utf8(&mut [0; 4]));
            used > width
        })
        .map_or(text.len(), |(at, _)| at)
}

/// Returns the width of a text in cells.
fn cells(text: &str) -> u16 {
    u16::try_from(ratatui::text::Span::raw(text).width()).unwrap_or(u16::MAX)
}
