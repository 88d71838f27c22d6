//! The columns: what each shows of an agent, how wide it is, how it sorts, and which of them fit.

use std::cmp::Ordering;

use colibri_client::{AgentState, Watched};
use jiff::Timestamp;

use crate::output::{list_order, plain, short_age, short_bytes};

/// What can be shown, and sorted by.
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

/// So wide the name becomes before any other column.
const NAME_FIRST: u16 = 18;
/// Cells between two columns.
const GAP: u16 = 1;

impl Column {
    /// From left to right.
    pub(super) const ALL: [Self; 14] = [
        Name, Id, State, Since, Tool, Cpu, Memory, Age, Output, Turns, Tokens, Cost, Runtime, Jail,
    ];

    /// Where there is no room for all, the first of these are shown.
    const BY_WORTH: [Self; 14] = [
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

    /// Least and most cells.
    fn widths(self) -> (u16, u16) {
        match self {
            Name => (12, 28),
            Tool => (8, 20),
            Jail => (8, 24),
            Id => (10, 10),
            State => (8, 8),
            Runtime => (7, 7),
            Output | Tokens | Cost | Memory => (6, 6),
            Since | Turns | Cpu => (5, 5),
            Age => (4, 4),
        }
    }

    pub(super) fn is_number(self) -> bool {
        matches!(
            self,
            Since | Cpu | Memory | Age | Output | Turns | Tokens | Cost
        )
    }

    /// Whether the largest value comes first by default. The youngest agent comes first, as in `colibri ps`.
    pub(super) fn descending(self) -> bool {
        self.is_number() && self != Age
    }

    pub(super) fn next(self) -> Self {
        let at = Self::ALL.iter().position(|column| *column == self);
        let next = at.map_or(0, |at| (at + 1) % Self::ALL.len());
        Self::ALL.get(next).copied().unwrap_or(Name)
    }

    /// The text of a cell. `with_id`: the id has a column of its own.
    pub(super) fn text(self, watched: &Watched, now: Timestamp, with_id: bool) -> String {
        let agent = &watched.agent;
        let view = agent.view.as_ref();
        let used = watched.used.as_ref();
        let dash = || "-".to_owned();
        match self {
            Name => match &agent.name {
                Some(name) => plain(name, usize::from(self.widths().1)),
                None if with_id => dash(),
                None => agent.id.clone(),
            },
            Id => plain(&agent.id, 10),
            State => agent.state.to_string(),
            Since => watched
                .since
                .as_deref()
                .map_or_else(dash, |since| short_age(seconds_since(since, now))),
            Tool => watched
                .current_tool
                .as_deref()
                .map_or_else(dash, |tool| plain(tool, usize::from(self.widths().1))),
            Cpu => used
                .and_then(|used| used.cpu_percent)
                .map_or_else(dash, percent),
            Memory => used.map_or_else(dash, |used| short_bytes(used.memory_bytes)),
            Age => short_age(seconds_since(&agent.started_at, now)),
            Output => short_bytes(output(watched)),
            Turns => view.map_or_else(dash, |view| view.turns.to_string()),
            Tokens => view.map_or_else(dash, |_| short_count(tokens(watched))),
            Cost => view.map_or_else(dash, |view| cost(view.cost_usd)),
            Runtime => format!("{:?}", agent.runtime).to_lowercase(),
            Jail => plain(jail(watched), usize::from(self.widths().1)),
        }
    }

    /// Which of two agents is less in this column.
    pub(super) fn compare(self, a: &Watched, b: &Watched) -> Ordering {
        let view = |of: &Watched| of.agent.view.clone();
        match self {
            Name => name(a).cmp(name(b)),
            Id => a.agent.id.cmp(&b.agent.id),
            State => urgency(a.agent.state).cmp(&urgency(b.agent.state)),
            // What is later is shorter. The times are RFC 3339 in UTC, which sort as text.
            Since => b.since.cmp(&a.since),
            Age => b.agent.started_at.cmp(&a.agent.started_at),
            // Without a tool it comes last.
            Tool => {
                let key = |of: &Watched| (of.current_tool.is_none(), of.current_tool.clone());
                key(a).cmp(&key(b))
            }
            Cpu => {
                let share =
                    |of: &Watched| of.used.map_or(-1.0, |used| used.cpu_percent.unwrap_or(0.0));
                share(a).total_cmp(&share(b))
            }
            Memory => {
                let memory = |of: &Watched| of.used.map(|used| used.memory_bytes);
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
                let word = |of: &Watched| format!("{:?}", of.agent.runtime);
                word(a).cmp(&word(b))
            }
            Jail => jail(a).cmp(jail(b)),
        }
    }
}

/// Compares as `colibri ps` sorts: running agents first, then ended ones, each newest first, or oldest first.
pub(super) fn by_age(a: &Watched, b: &Watched, oldest_first: bool) -> Ordering {
    let order = list_order(&a.agent, &b.agent);
    match oldest_first && a.runs() == b.runs() {
        true => order.reverse(),
        false => order,
    }
}

/// The columns that fit, from left to right, each with its first cell and its width.
pub(super) fn fitting(width: u16) -> Vec<(Column, u16, u16)> {
    let mut chosen: Vec<(Column, u16)> = Vec::new();
    let mut used = 0;
    for column in Column::BY_WORTH {
        let (least, _) = column.widths();
        let gap = if chosen.is_empty() { 0 } else { GAP };
        if used + gap + least <= width {
            used += gap + least;
            chosen.push((column, least));
        } else if chosen.is_empty() {
            // Narrower than a name: as much of it as there is.
            used = width;
            chosen.push((column, width));
        } else {
            break;
        }
    }
    let mut left = width - used;
    // The name is what a person goes by.
    if let Some((Name, width)) = chosen.first_mut() {
        let more = left.min(NAME_FIRST.saturating_sub(*width));
        *width += more;
        left -= more;
    }
    while left > 0 {
        let before = left;
        for (column, width) in &mut chosen {
            if left > 0 && *width < column.widths().1 {
                *width += 1;
                left -= 1;
            }
        }
        if left == before {
            break;
        }
    }
    let mut at = 0;
    let mut placed = Vec::new();
    for column in Column::ALL {
        if let Some((_, width)) = chosen.iter().find(|(chosen, _)| *chosen == column) {
            placed.push((column, at, *width));
            at += width + GAP;
        }
    }
    placed
}

/// What needs a person comes first, and what has ended last.
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

pub(super) fn name(watched: &Watched) -> &str {
    watched.agent.name.as_deref().unwrap_or(&watched.agent.id)
}

pub(super) fn jail(watched: &Watched) -> &str {
    let jail = watched.agent.jail.as_ref();
    jail.and_then(|jail| jail.name.as_deref().or(jail.path.as_deref()))
        .unwrap_or("-")
}

fn output(watched: &Watched) -> u64 {
    watched
        .agent
        .stdout_bytes
        .saturating_add(watched.agent.stderr_bytes)
}

fn tokens(watched: &Watched) -> u64 {
    watched.agent.view.as_ref().map_or(0, |view| {
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
    fn what_is_worth_most_is_shown_where_not_all_fits() {
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
            let found: Vec<_> = placed.iter().map(|(column, ..)| column.title()).collect();
            assert_eq!(found.join(" "), titles, "{width}");
            let mut free = 0;
            for (_, at, cells) in &placed {
                assert!(*at >= free && at + cells <= width, "{width}: {placed:?}");
                free = at + cells;
            }
        }
    }

    #[test]
    fn every_width_is_within_the_screen() {
        for width in 0..400 {
            let placed = fitting(width);
            let end = placed.last().map_or(0, |(_, at, cells)| at + cells);
            assert!(end <= width, "{width}: {placed:?}");
        }
    }

    #[test]
    fn all_columns_are_sorted_by_in_turn() {
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
