//! The columns: their texts, widths, order and layout.

use std::cmp::Ordering;

use colibri_client::{AgentEntry, AgentState};
use jiff::Timestamp;

use crate::output::sanitize;
use crate::tables::{list_order, short_age, short_bytes};

/// A column of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Column {
    Name,
    Id,
    State,
    Since,
    Tool,
    Cpu,
    Memory,
    Age,
    Output,
    Turns,
    Tokens,
    Cost,
    Runtime,
    Jail,
}

use Column::{
    Age, Cost, Cpu, Id, Jail, Memory, Name, Output, Runtime, Since, State, Tokens, Tool, Turns,
};

/// Width up to which the name grows before any other column, in cells.
const PREFERRED_NAME: u16 = 18;
/// Number of cells between two columns.
const GAP: u16 = 1;

/// Minimum and maximum width, in cells.
struct WidthRange {
    min: u16,
    max: u16,
}

impl Column {
    /// All columns, from left to right.
    pub(super) const ALL: [Self; 14] = [
        Name, Id, State, Since, Tool, Cpu, Memory, Age, Output, Turns, Tokens, Cost, Runtime, Jail,
    ];

    /// All columns by priority: a narrow screen shows the first ones.
    const BY_PRIORITY: [Self; 14] = [
        Name, State, Since, Cpu, Memory, Tool, Age, Output, Runtime, Jail, Tokens, Cost, Id, Turns,
    ];

    pub(super) fn title(self) -> &'static str {
        match self {
            Name => "NAME",
            Id => "ID",
            State => "STATE",
            Since => "SINCE",
            Tool => "TOOL",
            Cpu => "CPU",
            Memory => "MEM",
            Age => "AGE",
            Output => "OUTPUT",
            Turns => "TURNS",
            Tokens => "TOKENS",
            Cost => "COST",
            Runtime => "RUNTIME",
            Jail => "JAIL",
        }
    }

    fn width(self) -> WidthRange {
        let (min, max) = match self {
            Name => (12, 28),
            Tool => (8, 20),
            Jail => (8, 24),
            Id => (10, 10),
            State => (8, 8),
            Runtime => (7, 7),
            Output | Tokens | Cost | Memory => (6, 6),
            Since | Turns | Cpu => (5, 5),
            Age => (4, 4),
        };
        WidthRange { min, max }
    }

    pub(super) fn is_number(self) -> bool {
        matches!(
            self,
            Since | Cpu | Memory | Age | Output | Turns | Tokens | Cost
        )
    }

    /// Returns whether the default order is descending. By age, the youngest agent is first, as in `colibri ps`.
    pub(super) fn descending(self) -> bool {
        self.is_number() && self != Age
    }

    pub(super) fn next(self) -> Self {
        let at = Self::ALL.iter().position(|column| *column == self);
        let next = at.map_or(0, |at| (at + 1) % Self::ALL.len());
        Self::ALL.get(next).copied().unwrap_or(Name)
    }

    /// Returns the text of a cell. `with_id`: the table has a column of ids, so that an agent without a name has none.
    pub(super) fn text(self, entry: &AgentEntry, now: Timestamp, with_id: bool) -> String {
        let agent = &entry.agent;
        let view = agent.view.as_ref();
        let usage = entry.usage.as_ref();
        let dash = || "-".to_owned();
        match self {
            Name => match &agent.name {
                Some(name) => sanitize(name, usize::from(self.width().max)),
                None if with_id => dash(),
                None => agent.id.clone(),
            },
            Id => sanitize(&agent.id, 10),
            State => agent.state.to_string(),
            Since => entry
                .since
                .as_deref()
                .map_or_else(dash, |since| short_age(seconds_since(since, now))),
            Tool => entry
                .current_tool
                .as_deref()
                .map_or_else(dash, |tool| sanitize(tool, usize::from(self.width().max))),
            Cpu => usage
                .and_then(|usage| usage.cpu_percent)
                .map_or_else(dash, percent),
            Memory => usage.map_or_else(dash, |usage| short_bytes(usage.memory_bytes)),
            Age => short_age(seconds_since(&agent.started_at, now)),
            Output => short_bytes(output(entry)),
            Turns => view.map_or_else(dash, |view| view.turns.to_string()),
            Tokens => view.map_or_else(dash, |_| short_count(tokens(entry))),
            Cost => view.map_or_else(dash, |view| cost(view.cost_usd)),
            Runtime => format!("{:?}", agent.runtime).to_lowercase(),
            Jail => sanitize(jail(entry), usize::from(self.width().max)),
        }
    }

    /// Compares two agents by this column.
    pub(super) fn compare(self, a: &AgentEntry, b: &AgentEntry) -> Ordering {
        let view = |entry: &AgentEntry| entry.agent.view.clone();
        match self {
            Name => name(a).cmp(name(b)),
            Id => a.agent.id.cmp(&b.agent.id),
            State => urgency(a.agent.state).cmp(&urgency(b.agent.state)),
            // By duration: a later start is shorter. RFC 3339 in UTC sorts as text.
            Since => b.since.cmp(&a.since),
            Age => b.agent.started_at.cmp(&a.agent.started_at),
            // Agents without a tool are last.
            Tool => {
                let key =
                    |entry: &AgentEntry| (entry.current_tool.is_none(), entry.current_tool.clone());
                key(a).cmp(&key(b))
            }
            Cpu => {
                let share = |entry: &AgentEntry| {
                    entry
                        .usage
                        .map_or(-1.0, |usage| usage.cpu_percent.unwrap_or(0.0))
                };
                share(a).total_cmp(&share(b))
            }
            Memory => {
                let memory = |entry: &AgentEntry| entry.usage.map(|usage| usage.memory_bytes);
                memory(a).cmp(&memory(b))
            }
            Output => output(a).cmp(&output(b)),
            Turns => {
                let turns = |of| view(of).map(|view| view.turns);
                turns(a).cmp(&turns(b))
            }
            Tokens => tokens(a).cmp(&tokens(b)),
            Cost => {
                let cost = |of| view(of).map_or(-1.0, |view| view.cost_usd);
                cost(a).total_cmp(&cost(b))
            }
            Runtime => {
                let word = |entry: &AgentEntry| format!("{:?}", entry.agent.runtime);
                word(a).cmp(&word(b))
            }
            Jail => jail(a).cmp(jail(b)),
        }
    }
}

/// Compares as `colibri ps` does: running agents first, then ended ones, each newest first, or oldest first.
pub(super) fn by_age(a: &AgentEntry, b: &AgentEntry, oldest_first: bool) -> Ordering {
    let order = list_order(&a.agent, &b.agent);
    match oldest_first && a.runs() == b.runs() {
        true => order.reverse(),
        false => order,
    }
}

/// A column on the screen.
#[derive(Debug, Clone, Copy)]
pub(super) struct PlacedColumn {
    pub(super) column: Column,
    /// First cell.
    pub(super) x: u16,
    /// Number of cells.
    pub(super) width: u16,
}

/// Returns the columns that fit a screen of this width, from left to right.
pub(super) fn fitting(width: u16) -> Vec<PlacedColumn> {
    let mut chosen: Vec<(Column, u16)> = Vec::new();
    let mut used = 0;
    for column in Column::BY_PRIORITY {
        let min = column.width().min;
        let gap = if chosen.is_empty() { 0 } else { GAP };
        if used + gap + min <= width {
            used += gap + min;
            chosen.push((column, min));
        } else if chosen.is_empty() {
            // The screen is narrower than the name.
            used = width;
            chosen.push((column, width));
        } else {
            break;
        }
    }
    let mut left = width - used;
    if let Some((Name, width)) = chosen.first_mut() {
        let more = left.min(PREFERRED_NAME.saturating_sub(*width));
        *width += more;
        left -= more;
    }
    while left > 0 {
        let before = left;
        for (column, width) in &mut chosen {
            if left > 0 && *width < column.width().max {
                *width += 1;
                left -= 1;
            }
        }
        if left == before {
            break;
        }
    }
    let mut x = 0;
    let mut placed = Vec::new();
    for column in Column::ALL {
        if let Some((_, width)) = chosen.iter().find(|(chosen, _)| *chosen == column) {
            let width = *width;
            placed.push(PlacedColumn { column, x, width });
            x += width + GAP;
        }
    }
    placed
}

/// Returns the rank of a state: agents that need the user are first, ended ones last.
fn urgency(state: AgentState) -> u8 {
    match state {
        AgentState::Blocked => 0,
        AgentState::Stalled => 1,
        AgentState::Working => 2,
        AgentState::Starting => 3,
        AgentState::Idle => 4,
        AgentState::Error => 5,
        AgentState::Done => 6,
    }
}

pub(super) fn name(entry: &AgentEntry) -> &str {
    entry.agent.name.as_deref().unwrap_or(&entry.agent.id)
}

pub(super) fn jail(entry: &AgentEntry) -> &str {
    let jail = entry.agent.jail.as_ref();
    jail.and_then(|jail| jail.name.as_deref().or(jail.path.as_deref()))
        .unwrap_or("-")
}

fn output(entry: &AgentEntry) -> u64 {
    entry
        .agent
        .stdout_bytes
        .saturating_add(entry.agent.stderr_bytes)
}

fn tokens(entry: &AgentEntry) -> u64 {
    entry.agent.view.as_ref().map_or(0, |view| {
        view.input_tokens.saturating_add(view.output_tokens)
    })
}

fn seconds_since(time: &str, now: Timestamp) -> i64 {
    time.parse::<Timestamp>()
        .map_or(0, |at| now.as_second() - at.as_second())
}

fn percent(share: f64) -> String {
    if share < 9.95 {
        format!("{share:.1}%")
    } else {
        format!("{share:.0}%")
    }
}

pub(super) fn short_count(count: u64) -> String {
    match count {
        n @ 0..10_000 => n.to_string(),
        n @ 10_000..10_000_000 => format!("{}k", n / 1000),
        n => format!("{}M", n / 1_000_000),
    }
}

pub(super) fn cost(dollars: f64) -> String {
    match dollars {
        d if d < 99.995 => format!("${d:.2}"),
        d if d < 99_999.5 => format!("${d:.0}"),
        d => format!("${:.0}k", d / 1000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_screen_shows_columns_by_priority() {
        for (width, titles) in [
            (0, "NAME"),
            (1, "NAME"),
            (20, "NAME"),
            (21, "NAME STATE"),
            (40, "NAME STATE SINCE CPU MEM"),
            (80, "NAME STATE SINCE TOOL CPU MEM AGE OUTPUT RUNTIME JAIL"),
            (
                120,
                "NAME ID STATE SINCE TOOL CPU MEM AGE OUTPUT TURNS TOKENS COST RUNTIME JAIL",
            ),
        ] {
            let placed = fitting(width);
            let found: Vec<_> = placed.iter().map(|placed| placed.column.title()).collect();
            assert_eq!(found.join(" "), titles, "{width}");
            let mut free = 0;
            for column in &placed {
                let end = column.x + column.width;
                assert!(column.x >= free && end <= width, "{width}: {placed:?}");
                free = end;
            }
        }
    }

    #[test]
    fn columns_stay_within_every_width() {
        for width in 0..400 {
            let placed = fitting(width);
            let end = placed.last().map_or(0, |column| column.x + column.width);
            assert!(end <= width, "{width}: {placed:?}");
        }
    }

    #[test]
    fn next_column_cycles_through_all() {
        let mut column = Name;
        for expected in Column::ALL.iter().skip(1).chain([&Name]) {
            column = column.next();
            assert_eq!(column, *expected);
        }
    }

    #[test]
    fn numbers_fit_their_columns() {
        for (dollars, text) in [
            (0.0, "$0.00"),
            (99.99, "$99.99"),
            (99.999, "$100"),
            (99_999.0, "$99999"),
            (1e6, "$1000k"),
        ] {
            assert_eq!(cost(dollars), text);
        }
        for (count, text) in [(9999, "9999"), (10_000, "10k"), (12_345_678, "12M")] {
            assert_eq!(short_count(count), text);
        }
        for (share, text) in [(0.0, "0.0%"), (9.96, "10%"), (1600.0, "1600%")] {
            assert_eq!(percent(share), text);
        }
    }
}
