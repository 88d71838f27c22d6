//! Draws the model. Does no I/O. A small screen shows, by priority, the table, the line of keys, the line of counts, the
//! titles, and the details of the selected agent.

use colibri_client::{AgentEntry, AgentState};
use jiff::Timestamp;
use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};
use ratatui::style::{Color, Modifier, Style};

use super::app::{App, ConnectionState, Mode};
use super::columns::{self, Column, PlacedColumn};
use super::keys::HELP;
use crate::output::sanitize;
use crate::tables::{command, short_exit};

/// Some lines of the screen.
struct LineRange {
    /// First line.
    y: u16,
    height: u16,
}

/// The parts of the screen from top to bottom.
struct Layout {
    counts: Option<u16>,
    titles: Option<u16>,
    table: LineRange,
    details: Option<LineRange>,
    /// The line of keys, or the edited line.
    foot: Option<u16>,
}

impl Layout {
    fn new(height: u16, is_editing: bool) -> Self {
        let foot = (height >= 2 || is_editing).then(|| height.saturating_sub(1));
        let counts = (height >= 3).then_some(0);
        let titles = (height >= 4).then_some(1);
        let details = match height {
            0..8 => 0,
            8..14 => 1,
            14..20 => 3,
            _ => 5,
        };
        let above = u16::from(counts.is_some()) + u16::from(titles.is_some());
        let below = u16::from(foot.is_some()) + details;
        let table = height.saturating_sub(above + below);
        Self {
            counts,
            titles,
            table: LineRange {
                y: above,
                height: table,
            },
            details: (details > 0).then_some(LineRange {
                y: above + table,
                height: details,
            }),
            foot,
        }
    }
}

/// Returns the number of rows of the table on a screen of this height.
pub(super) fn rows(app: &App, height: u16) -> usize {
    usize::from(Layout::new(height, is_editing(app)).table.height)
}

fn is_editing(app: &App) -> bool {
    !matches!(app.mode, Mode::Table | Mode::Help)
}

/// Draws the screen.
pub(super) fn draw(frame: &mut Frame<'_>, app: &App, now: Timestamp, in_colour: bool) {
    let area = frame.area();
    let mut pen = Pen {
        buffer: frame.buffer_mut(),
        area,
        in_colour,
    };
    let layout = Layout::new(area.height, is_editing(app));
    if matches!(app.mode, Mode::Help) {
        return pen.help();
    }
    if let Some(y) = layout.counts {
        pen.counts(y, app);
    }
    pen.table(&layout, app, now);
    if let Some(lines) = layout.details
        && let Some(selected) = app.selected()
    {
        pen.details(&lines, selected);
    }
    let cursor = layout.foot.and_then(|y| pen.foot(y, app));
    if let Some(cursor) = cursor {
        frame.set_cursor_position(cursor);
    }
}

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
        if self.in_colour {
            Style::new().fg(colour)
        } else {
            Style::new()
        }
    }

    fn state(&self, state: AgentState) -> Style {
        match state {
            AgentState::Starting => self.colour(Color::Cyan),
            AgentState::Idle => Style::new(),
            AgentState::Working => self.colour(Color::Green),
            AgentState::Blocked => self.colour(Color::Yellow).add_modifier(Modifier::BOLD),
            AgentState::Stalled => self.colour(Color::Magenta).add_modifier(Modifier::BOLD),
            AgentState::Done => Style::new().add_modifier(Modifier::DIM),
            AgentState::Error => self.colour(Color::Red).add_modifier(Modifier::BOLD),
        }
    }

    /// Draws the numbers of agents by state, or the reason of a lost connection.
    fn counts(&mut self, y: u16, app: &App) {
        if let ConnectionState::Lost(reason) = &app.connection {
            let style = self
                .colour(Color::Red)
                .add_modifier(Modifier::BOLD | Modifier::REVERSED);
            let text = format!("no connection, reconnecting: {}", sanitize(reason, 200));
            return self.line(y, &text, style);
        }
        const STATES: [AgentState; 7] = [
            AgentState::Blocked,
            AgentState::Stalled,
            AgentState::Error,
            AgentState::Working,
            AgentState::Starting,
            AgentState::Idle,
            AgentState::Done,
        ];
        let all = app.roster.iter().count();
        let mut text = counted(all as u64, "agent", "agents");
        if !app.filter.value().is_empty() {
            text.push_str(&format!(", {} shown", app.count()));
        }
        let bold = Style::new().add_modifier(Modifier::BOLD);
        self.line(y, &text, bold);
        let mut x = cells(&text);
        for state in STATES {
            let count = app
                .roster
                .iter()
                .filter(|entry| entry.agent.state == state)
                .count();
            if count > 0 {
                let text = format!("{count} {state}");
                self.put(x + 2, y, self.area.width, &text, self.state(state));
                x += 2 + cells(&text);
            }
        }
    }

    fn table(&mut self, layout: &Layout, app: &App, now: Timestamp) {
        let placed = columns::fitting(self.area.width);
        let with_id = placed.iter().any(|placed| placed.column == Column::Id);
        if let Some(y) = layout.titles {
            for PlacedColumn { column, x, width } in &placed {
                let mut style = Style::new().add_modifier(Modifier::BOLD);
                if *column == app.sort {
                    style = style.add_modifier(Modifier::UNDERLINED);
                }
                self.cell(*column, *x, y, *width, column.title(), style);
            }
        }
        let LineRange { y: top, height } = layout.table;
        if app.count() == 0 && height > 0 {
            let text = if app.roster.iter().next().is_none() {
                "no agents; start one with colibri spawn"
            } else {
                "no agent matches the filter; clear it with Esc"
            };
            return self.line(top, text, Style::new());
        }
        for ((entry, selected), y) in app.visible().zip(top..top.saturating_add(height)) {
            for PlacedColumn { column, x, width } in &placed {
                let style = match column {
                    Column::State => self.state(entry.agent.state),
                    _ if !entry.runs() => Style::new().add_modifier(Modifier::DIM),
                    _ => Style::new(),
                };
                let text = column.text(entry, now, with_id);
                self.cell(*column, *x, y, *width, &text, style);
            }
            let row = Rect::new(0, y, self.area.width, 1).intersection(self.area);
            if app.connection != ConnectionState::Live {
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
        let free = if column.is_number() {
            width.saturating_sub(cells(&text))
        } else {
            0
        };
        self.put(x + free, y, width - free, &text, style);
    }

    /// Draws the details of an agent: names and usage, command, last error.
    fn details(&mut self, lines: &LineRange, entry: &AgentEntry) {
        let LineRange { y, height } = *lines;
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
            let (read, written) = (
                columns::short_count(view.input_tokens),
                columns::short_count(view.output_tokens),
            );
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
        self.line(y, &summary, Style::new().add_modifier(Modifier::BOLD));
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
            let name = entry.map_or(id, columns::name);
            if name == id {
                id.to_owned()
            } else {
                format!("{} ({id})", sanitize(name, 30))
            }
        };
        let bold = Style::new().add_modifier(Modifier::BOLD);
        match &app.mode {
            Mode::Kill { id } => {
                let text = format!("kill {}? y/N ", name(id));
                self.line(y, &text, bold);
                Some(self.cursor(cells(&text), y))
            }
            Mode::Prompt { id, line } => {
                Some(self.edited(y, &format!("prompt {}: ", name(id)), line))
            }
            Mode::Filter { .. } => Some(self.edited(y, "filter: ", &app.filter)),
            Mode::Table | Mode::Help => {
                match &app.message {
                    Some(message) => self.line(y, &sanitize(message, 400), bold),
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
        let bold = Style::new().add_modifier(Modifier::BOLD);
        // Half of a narrow screen is left for the text.
        let label_width = cells(label).min(self.area.width / 2);
        self.put(0, y, label_width, label, bold);
        let room = self.area.width.saturating_sub(label_width + 1);
        let scroll = line.visual_scroll(usize::from(room));
        let mut hidden = 0;
        let visible: String = line
            .value()
            .chars()
            .skip_while(|c| {
                let hide = hidden < scroll;
                hidden += usize::from(cells(&c.to_string()));
                hide
            })
            .collect();
        self.put(label_width, y, self.area.width, &visible, Style::new());
        let at = line.visual_cursor().saturating_sub(scroll);
        self.cursor(
            label_width.saturating_add(u16::try_from(at).unwrap_or(u16::MAX)),
            y,
        )
    }

    fn cursor(&self, x: u16, y: u16) -> Position {
        Position::new(x.min(self.area.width.saturating_sub(1)), y)
    }

    fn help(&mut self) {
        let bold = Style::new().add_modifier(Modifier::BOLD);
        self.line(0, "colibri top: keys (any key closes the help)", bold);
        for ((keys, effect), y) in HELP.iter().zip(2..) {
            self.put(0, y, 16, keys, bold);
            self.put(16, y, self.area.width, effect, Style::new());
        }
        self.line(
            16,
            "CPU is the share of one CPU; MEM is resident memory (RSS), of all",
            Style::new(),
        );
        self.line(
            17,
            "processes of an agent. SINCE is how long it has been in its state.",
            Style::new(),
        );
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
