//! Draws the model. Does no I/O. A small screen shows, by priority, the table, the line of keys, the line of counts, the
//! titles, and the details of the selected agent.

use colibri_client::{AgentEntry, AgentState};
use jiff::Timestamp;
use ratatui::Frame;
use ratatui::layout::{Position, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Paragraph, Wrap};

use super::app::{App, Mode};
use super::columns::{self, Column, GAP};
use super::keys::{HELP, NOTES};
use crate::output::sanitize;
use crate::tables::{command, short_count, short_exit};

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
    let [counts, titles, table, details, foot] = parts(app, frame.area());
    let mut pen = Pen { frame, in_colour };
    if matches!(app.mode, Mode::Help) {
        return pen.help();
    }
    pen.counts(counts, app);
    pen.table(titles, table, app, now);
    if let Some(selected) = app.selected() {
        pen.details(details, selected);
    }
    if let Some(cursor) = pen.foot(foot, app) {
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

struct Pen<'a, 'b> {
    frame: &'a mut Frame<'b>,
    in_colour: bool,
}

impl Pen<'_, '_> {
    /// Writes text in one line, and nothing outside the area.
    fn put(&mut self, area: Rect, text: &str, style: Style) {
        self.frame.render_widget(Span::styled(text, style), area);
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
    fn counts(&mut self, area: Rect, app: &App) {
        if let Some(reason) = &app.lost {
            let style = self
                .colour(Color::Red)
                .add_modifier(Modifier::BOLD | Modifier::REVERSED);
            let text = format!("no connection, reconnecting: {}", sanitize(reason, 200));
            return self.put(area, &text, style);
        }
        let all = app.roster.iter().count();
        let mut text = counted(all as u64, "agent", "agents");
        if !app.filter.value().is_empty() {
            text.push_str(&format!(", {} shown", app.rows.len()));
        }
        let mut line = Line::from(Span::styled(text, BOLD));
        for state in STATES {
            let has_state = |entry: &&AgentEntry| entry.agent.state == state;
            let count = app.roster.iter().filter(has_state).count();
            if count > 0 {
                line.push_span("  ");
                line.push_span(Span::styled(format!("{count} {state}"), self.state(state)));
            }
        }
        self.frame.render_widget(line, area);
    }

    fn table(&mut self, titles: Rect, table: Rect, app: &App, now: Timestamp) {
        let columns = columns::fitting(table.width);
        let with_id = columns.iter().any(|(column, _)| *column == Column::Id);
        self.row(titles, &columns, |column| {
            let style = match column == app.sort {
                true => BOLD.add_modifier(Modifier::UNDERLINED),
                false => BOLD,
            };
            (column.title().to_owned(), style)
        });
        if app.rows.is_empty() {
            let text = match app.roster.iter().next() {
                None => "no agents; start one with colibri spawn",
                Some(_) => "no agent matches the filter; clear it with Esc",
            };
            self.put(table, text, Style::new());
        }
        let grey = self.colour(Color::DarkGray).add_modifier(Modifier::DIM);
        for ((entry, selected), area) in app.visible().zip(table.rows()) {
            let state = self.state(entry.agent.state);
            self.row(area, &columns, |column| {
                let style = match column {
                    Column::State => state,
                    _ if !entry.runs() => DIM,
                    _ => Style::new(),
                };
                (column.text(entry, now, with_id), style)
            });
            if app.lost.is_some() {
                self.frame.buffer_mut().set_style(area, grey);
            }
            if selected {
                self.frame.buffer_mut().set_style(area, Modifier::REVERSED);
            }
        }
    }

    /// Draws a row of cells: numbers right-aligned, other text left-aligned, truncated with an ellipsis.
    fn row(
        &mut self,
        mut area: Rect,
        columns: &[(Column, u16)],
        cell: impl Fn(Column) -> (String, Style),
    ) {
        for (column, width) in columns {
            let (text, style) = cell(*column);
            let text = Span::styled(sanitize(&text, usize::from(*width)), style);
            area.width = *width;
            let line = match column.is_number() {
                true => text.into_right_aligned_line(),
                false => text.into_left_aligned_line(),
            };
            self.frame.render_widget(line, area);
            area.x += width + GAP;
        }
    }

    /// Draws the details of an agent: names and usage, command, last error.
    fn details(&mut self, area: Rect, entry: &AgentEntry) {
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
            parts.push(counted(usage.last.processes.into(), "process", "processes"));
        }
        if let Some(view) = &agent.view {
            parts.push(counted(view.turns, "turn", "turns"));
            let [read, written] =
                [view.input_tokens, view.output_tokens].map(|tokens| short_count(tokens, ""));
            parts.push(format!("{read}+{written} tokens"));
            parts.push(columns::cost(view.cost_usd));
        }
        let summary: Vec<_> = parts.iter().map(|part| sanitize(part, 60)).collect();
        let error = entry.last_error.as_ref();
        let error = error.map(|error| format!("error: {}", sanitize(error, 300)));
        let summary = summary.join("  ");
        let red = self.colour(Color::Red);
        if area.height < 3 {
            return match error {
                Some(error) => self.put(area, &error, red),
                None => self.put(area, &summary, Style::new()),
            };
        }
        let command = format!("$ {}", sanitize(&command(agent), 400));
        let error = Paragraph::new(error.unwrap_or_default()).style(red);
        let [first, second] = [0, 1].map(|row| Rect {
            y: area.y + row,
            height: 1,
            ..area
        });
        let rest = Rect {
            y: area.y + 2,
            height: area.height - 2,
            ..area
        };
        self.put(first, &summary, BOLD);
        self.put(second, &command, Style::new());
        self.frame
            .render_widget(error.wrap(Wrap { trim: true }), rest);
    }

    /// Draws the last line; returns the position of its cursor.
    fn foot(&mut self, area: Rect, app: &App) -> Option<Position> {
        let name = |id: &str| {
            let entry = app.roster.get(id);
            match entry.map_or(id, columns::name) {
                name if name == id => id.to_owned(),
                name => format!("{} ({id})", sanitize(name, 30)),
            }
        };
        match &app.mode {
            Mode::Kill(id) => {
                let text = format!("kill {}? y/N ", name(id));
                self.put(area, &text, BOLD);
                Some(cursor(area, cells(&text)))
            }
            Mode::Prompt { id, line } => {
                Some(self.edited(area, &format!("prompt {}: ", name(id)), line))
            }
            Mode::Filter(_) => Some(self.edited(area, "filter: ", &app.filter)),
            Mode::Table | Mode::Help => {
                match &app.message {
                    Some(message) => self.put(area, &sanitize(message, 400), BOLD),
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
                        self.put(area, &text, Style::new());
                    }
                }
                None
            }
        }
    }

    /// Draws an edited line; of a long line the part around the cursor.
    fn edited(&mut self, area: Rect, label: &str, line: &tui_input::Input) -> Position {
        // Half of a narrow screen is left for the text.
        let label_width = cells(label).min(area.width / 2);
        let [mut left, mut right] = [area, area];
        left.width = label_width;
        right.x += label_width;
        right.width -= label_width;
        self.put(left, label, BOLD);
        let scroll = line.visual_scroll(usize::from(right.width.saturating_sub(1)));
        let hidden = u16::try_from(scroll).unwrap_or(u16::MAX);
        let text = Paragraph::new(line.value()).scroll((0, hidden));
        self.frame.render_widget(text, right);
        let at = u16::try_from(line.visual_cursor().saturating_sub(scroll));
        cursor(area, label_width.saturating_add(at.unwrap_or(u16::MAX)))
    }

    fn help(&mut self) {
        let title = Line::styled("colibri top: keys (any key closes the help)", BOLD);
        let mut lines = vec![title, Line::default()];
        lines.extend(HELP.map(|(keys, effect)| {
            Line::from(vec![
                Span::styled(format!("{keys:<16}"), BOLD),
                effect.into(),
            ])
        }));
        lines.push(Line::default());
        lines.extend(NOTES.map(Line::from));
        self.frame
            .render_widget(Text::from(lines), self.frame.area());
    }
}

/// Returns the position of a cursor in a line, within the screen.
fn cursor(line: Rect, x: u16) -> Position {
    Position::new(x.min(line.width.saturating_sub(1)), line.y)
}

fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// Returns the width of a text in cells.
fn cells(text: &str) -> u16 {
    u16::try_from(Span::raw(text).width()).unwrap_or(u16::MAX)
}
