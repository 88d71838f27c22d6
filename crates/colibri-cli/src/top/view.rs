//! The screen: the model as cells. Pure. On a small screen the table comes first, then the line of keys, the line of
//! counts, the titles, and what is known of the selected agent.

use colibri_client::{AgentState, Watched};
use jiff::Timestamp;
use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};
use ratatui::style::{Color, Modifier, Style};

use super::app::{App, Link, Mode};
use super::columns::{self, Column};
use super::keys::HELP;
use crate::output::{ending, plain};

/// The parts of a screen, from above: each with its first line and its height.
struct Parts {
    counts: Option<u16>,
    titles: Option<u16>,
    table: (u16, u16),
    details: Option<(u16, u16)>,
    /// What can be done, or a line that is typed.
    foot: Option<u16>,
}

impl Parts {
    fn of(height: u16, typing: bool) -> Self {
        let foot = (height >= 2 || typing).then(|| height.saturating_sub(1));
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
            table: (above, table),
            details: (details > 0).then_some((above + table, details)),
            foot,
        }
    }
}

/// How many rows the table has on such a screen.
pub(super) fn rows(app: &App, height: u16) -> usize {
    usize::from(Parts::of(height, is_typing(app)).table.1)
}

fn is_typing(app: &App) -> bool {
    !matches!(app.mode, Mode::Table | Mode::Help)
}

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame<'_>, app: &App, now: Timestamp, in_colour: bool) {
    let area = frame.area();
    let mut pen = Pen {
        buffer: frame.buffer_mut(),
        area,
        in_colour,
    };
    let parts = Parts::of(area.height, is_typing(app));
    if matches!(app.mode, Mode::Help) {
        return pen.help();
    }
    if let Some(y) = parts.counts {
        pen.counts(y, app);
    }
    pen.table(&parts, app, now);
    if let Some((y, height)) = parts.details
        && let Some(selected) = app.selected()
    {
        pen.details(y, height, selected);
    }
    let cursor = parts.foot.and_then(|y| pen.foot(y, app));
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
    /// Writes what fits into so many cells; outside of the screen nothing.
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

    /// How many agents there are, in which states, and what is shown of them; or that the daemon has gone.
    fn counts(&mut self, y: u16, app: &App) {
        if let Link::Lost(why) = &app.link {
            let style = self
                .colour(Color::Red)
                .add_modifier(Modifier::BOLD | Modifier::REVERSED);
            let text = format!("lost the daemon; trying again. {}", plain(why, 200));
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
                .filter(|watched| watched.agent.state == state)
                .count();
            if count > 0 {
                let text = format!("{count} {state}");
                self.put(x + 2, y, self.area.width, &text, self.state(state));
                x += 2 + cells(&text);
            }
        }
    }

    fn table(&mut self, parts: &Parts, app: &App, now: Timestamp) {
        let placed = columns::fitting(self.area.width);
        let with_id = placed.iter().any(|(column, ..)| *column == Column::Id);
        if let Some(y) = parts.titles {
            for (column, x, width) in &placed {
                let mut style = Style::new().add_modifier(Modifier::BOLD);
                if *column == app.sort {
                    style = style.add_modifier(Modifier::UNDERLINED);
                }
                self.cell(*column, *x, y, *width, column.title(), style);
            }
        }
        let (top, height) = parts.table;
        if app.count() == 0 && height > 0 {
            let text = if app.roster.iter().next().is_none() {
                "no agents; start one with colibri spawn"
            } else {
                "no agent fits the filter; Esc ends it"
            };
            return self.line(top, text, Style::new());
        }
        for ((watched, selected), y) in app.shown().zip(top..top.saturating_add(height)) {
            for (column, x, width) in &placed {
                let style = match column {
                    Column::State => self.state(watched.agent.state),
                    _ if !watched.runs() => Style::new().add_modifier(Modifier::DIM),
                    _ => Style::new(),
                };
                let text = column.text(watched, now, with_id);
                self.cell(*column, *x, y, *width, &text, style);
            }
            let row = Rect::new(0, y, self.area.width, 1).intersection(self.area);
            if app.link != Link::Live {
                let grey = self.colour(Color::DarkGray).add_modifier(Modifier::DIM);
                self.buffer.set_style(row, grey);
            }
            if selected {
                self.buffer
                    .set_style(row, Style::new().add_modifier(Modifier::REVERSED));
            }
        }
    }

    /// Numbers stand at the right, words at the left, and what is too long ends with an ellipsis.
    fn cell(&mut self, column: Column, x: u16, y: u16, width: u16, text: &str, style: Style) {
        let text = plain(text, usize::from(width));
        let free = if column.is_number() {
            width.saturating_sub(cells(&text))
        } else {
            0
        };
        self.put(x + free, y, width - free, &text, style);
    }

    /// The selected agent: who it is and what it has used, its command, what went wrong.
    fn details(&mut self, y: u16, height: u16, watched: &Watched) {
        let agent = &watched.agent;
        let mut parts = vec![columns::name(watched).to_owned()];
        if agent.name.is_some() {
            parts.push(agent.id.clone());
        }
        match (agent.pid, watched.runs()) {
            (Some(pid), true) => parts.push(format!("pid {pid}")),
            (None, true) => parts.push("between two runs".to_owned()),
            (_, false) => parts.push(ending(agent.exit)),
        }
        if agent.run > 1 {
            parts.push(format!("run {}", agent.run));
        }
        if let Some(used) = &watched.used {
            parts.push(counted(used.processes.into(), "process", "processes"));
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
        let who: Vec<_> = parts.iter().map(|part| plain(part, 60)).collect();
        let error = watched
            .last_error
            .as_deref()
            .map(|error| format!("error: {}", plain(error, 300)));
        let command: Vec<&str> = std::iter::once(&agent.program)
            .chain(&agent.args)
            .map(String::as_str)
            .collect();
        let who = who.join("  ");
        let red = self.colour(Color::Red);
        if height < 3 {
            return match error {
                Some(error) => self.line(y, &error, red),
                None => self.line(y, &who, Style::new()),
            };
        }
        self.line(y, &who, Style::new().add_modifier(Modifier::BOLD));
        let command = format!("$ {}", plain(&command.join(" "), 400));
        self.line(y + 1, &command, Style::new());
        let error = error.unwrap_or_default();
        let mut left = error.as_str();
        for y in y + 2..y + height {
            let (line, rest) = left.split_at(fitting(left, self.area.width));
            self.line(y, line, red);
            left = rest;
        }
    }

    /// The last line; where a cursor stands in it.
    fn foot(&mut self, y: u16, app: &App) -> Option<Position> {
        let name = |id: &str| {
            let watched = app.roster.get(id);
            let name = watched.map_or(id, columns::name);
            if name == id {
                id.to_owned()
            } else {
                format!("{} ({id})", plain(name, 30))
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
                Some(self.typed(y, &format!("prompt {}: ", name(id)), line))
            }
            Mode::Filter { .. } => Some(self.typed(y, "filter: ", &app.filter)),
            Mode::Table | Mode::Help => {
                match &app.message {
                    Some(message) => self.line(y, &plain(message, 400), bold),
                    None => {
                        let order = if app.descending { "down" } else { "up" };
                        let sorted = app.sort.title();
                        let filter = match app.filter.value() {
                            "" => "/ filter".to_owned(),
                            filter => format!("/ {}  Esc all", plain(filter, 20)),
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

    /// A line that is typed: of a long one the part around the cursor.
    fn typed(&mut self, y: u16, question: &str, line: &tui_input::Input) -> Position {
        let bold = Style::new().add_modifier(Modifier::BOLD);
        // Half of a narrow screen is for what is typed.
        let asked = cells(question).min(self.area.width / 2);
        self.put(0, y, asked, question, bold);
        let room = self.area.width.saturating_sub(asked + 1);
        let scroll = line.visual_scroll(usize::from(room));
        let mut hidden = 0;
        let seen: String = line
            .value()
            .chars()
            .skip_while(|c| {
                let hide = hidden < scroll;
                hidden += usize::from(cells(&c.to_string()));
                hide
            })
            .collect();
        self.put(asked, y, self.area.width, &seen, Style::new());
        let at = line.visual_cursor().saturating_sub(scroll);
        self.cursor(
            asked.saturating_add(u16::try_from(at).unwrap_or(u16::MAX)),
            y,
        )
    }

    fn cursor(&self, x: u16, y: u16) -> Position {
        Position::new(x.min(self.area.width.saturating_sub(1)), y)
    }

    fn help(&mut self) {
        let bold = Style::new().add_modifier(Modifier::BOLD);
        self.line(0, "colibri top: keys (any key goes back)", bold);
        for ((keys, does), y) in HELP.iter().zip(2..) {
            self.put(0, y, 16, keys, bold);
            self.put(16, y, self.area.width, does, Style::new());
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

/// How many bytes of a text fit into so many cells.
fn fitting(text: &str, width: u16) -> usize {
    let mut used = 0;
    text.char_indices()
        .find(|(_, c)| {
            used += cells(c.encode_utf8(&mut [0; 4]));
            used > width
        })
        .map_or(text.len(), |(at, _)| at)
}

/// Cells that a text takes.
fn cells(text: &str) -> u16 {
    u16::try_from(ratatui::text::Span::raw(text).width()).unwrap_or(u16::MAX)
}
