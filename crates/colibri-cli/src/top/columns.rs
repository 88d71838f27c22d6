//! The columns: their texts, widths, order and layout.

use std::cmp::Ordering;

use colibri_client::{AgentEntry, AgentState};
use jiff::Timestamp;

use crate::tables::{age, jail_name, list_order, short_bytes, short_count, state_text};

/// A column of the table; the declared order is the order from left to right.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Column {
    Name,
    Id,
    State,
    Since,
    Tool,
    Cpu,
    Memory,
    #[default]
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
pub(super) const GAP: u16 = 1;

impl Column {
    /// All columns, from left to right.
    pub(super) const ALL: [Self; 14] = [
        Name, Id, State, Since, Tool, Cpu, Memory, Age, Output, Turns, Tokens, Cost, Runtime, Jail,
    ];

    /// All columns by priority: a narrow screen shows the first ones.
    const BY_PRIORITY: [Self; 14] = [
        Name, State, Since, Cpu, Memory, Tool, Age, Output, Runtime, Jail, Tokens, Cost, Id, Turns,
    ];

    /// Returns the title, and the minimum and maximum width in cells.
    fn layout(self) -> (&'static str, u16, u16) {
        match self {
            Name => ("NAME", 12, 28),
            Id => ("ID", 10, 10),
            State => ("STATE", 8, 8),
            Since => ("SINCE", 5, 5),
            Tool => ("TOOL", 8, 20),
            Cpu => ("CPU", 5, 5),
            Memory => ("MEM", 6, 6),
            Age => ("AGE", 4, 4),
            Output => ("OUTPUT", 6, 6),
            Turns => ("TURNS", 5, 5),
            Tokens => ("TOKENS", 6, 6),
            Cost => ("COST", 6, 6),
            Runtime => ("RUNTIME", 7, 7),
            Jail => ("JAIL", 8, 24),
        }
    }

    pub(super) fn title(self) -> &'static str {
        self.layout().0
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
        let mut later = Self::ALL.into_iter().filter(|column| *column > self);
        later.next().unwrap_or(Name)
    }

    /// Returns the text of a cell, not sanitized. `with_id`: the table has a column of ids, so that an agent without a name has none.
    pub(super) fn text(self, entry: &AgentEntry, now: Timestamp, with_id: bool) -> String {
        let agent = &entry.agent;
        let view = agent.view.as_ref();
        let usage = entry.usage.as_ref();
        let text = match self {
            Name if with_id => agent.name.clone(),
            Name => Some(name(entry).to_owned()),
            Id => Some(agent.id.clone()),
            State => Some(state_text(agent)),
            Since => entry.since.as_deref().map(|since| age(since, now)),
            Tool => entry.current_tool.clone(),
            Cpu => usage.and_then(|usage| usage.cpu_percent).map(percent),
            Memory => usage.map(|usage| short_bytes(usage.last.memory_bytes)),
            Age => Some(age(&agent.started_at, now)),
            Output => Some(short_bytes(output(entry))),
            Turns => view.map(|view| view.turns.to_string()),
            Tokens => view.map(|_| short_count(tokens(entry), "")),
            Cost => view.map(|view| cost(view.cost_usd)),
            Runtime => Some(agent.runtime.to_string()),
            Jail => Some(jail(entry).to_owned()),
        };
        text.unwrap_or_else(|| "-".to_owned())
    }

    /// Compares two agents by this column.
    pub(super) fn compare(self, a: &AgentEntry, b: &AgentEntry) -> Ordering {
        match self {
            Name => name(a).cmp(name(b)),
            Id => a.agent.id.cmp(&b.agent.id),
            State => urgency(a.agent.state).cmp(&urgency(b.agent.state)),
            // By duration: a later start is shorter. RFC 3339 in UTC sorts as text.
            Since => b.since.cmp(&a.since),
            Age => b.agent.started_at.cmp(&a.agent.started_at),
            // Agents without a tool are last.
            Tool => {
                let [a, b] = [&a.current_tool, &b.current_tool];
                a.is_none().cmp(&b.is_none()).then_with(|| a.cmp(b))
            }
            Runtime => a.agent.runtime.as_str().cmp(b.agent.runtime.as_str()),
            Jail => jail(a).cmp(jail(b)),
            Cpu | Memory | Output | Turns | Tokens | Cost => {
                let order = self.amount(a).partial_cmp(&self.amount(b));
                order.unwrap_or(Ordering::Equal)
            }
        }
    }

    /// Returns the value of a column of amounts, if it is known.
    fn amount(self, entry: &AgentEntry) -> Option<f64> {
        let (view, usage) = (entry.agent.view.as_ref(), entry.usage.as_ref());
        match self {
            Cpu => usage.map(|usage| usage.cpu_percent.unwrap_or(0.0)),
            Memory => usage.map(|usage| usage.last.memory_bytes as f64),
            Turns => view.map(|view| view.turns as f64),
            Cost => view.map(|view| view.cost_usd),
            Tokens => Some(tokens(entry) as f64),
            _ => Some(output(entry) as f64),
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

/// Returns the columns that fit a screen of this width, from left to right, with their widths.
pub(super) fn fitting(width: u16) -> Vec<(Column, u16)> {
    let (_, name, _) = Name.layout();
    let mut chosen = vec![(Name, name.min(width))];
    let mut left = width.saturating_sub(name);
    for column in Column::BY_PRIORITY.into_iter().skip(1) {
        let (_, min, _) = column.layout();
        let Some(rest) = left.checked_sub(GAP + min) else {
            break;
        };
        left = rest;
        chosen.push((column, min));
    }
    if let Some((Name, width)) = chosen.first_mut() {
        let more = left.min(PREFERRED_NAME.saturating_sub(*width));
        *width += more;
        left -= more;
    }
    // One cell for each column that may grow, until no cell is left.
    for _ in 0..width {
        for (column, width) in &mut chosen {
            let (_, _, max) = column.layout();
            let more = u16::from(left > 0 && *width < max);
            *width += more;
            left -= more;
        }
    }
    chosen.sort_unstable();
    chosen
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
    jail_name(entry.agent.jail.as_ref())
}

fn output(entry: &AgentEntry) -> u64 {
    let agent = &entry.agent;
    agent.stdout_bytes.saturating_add(agent.stderr_bytes)
}

fn tokens(entry: &AgentEntry) -> u64 {
    entry.agent.view.as_ref().map_or(0, |view| {
        view.input_tokens.saturating_add(view.output_tokens)
    })
}

fn percent(share: f64) -> String {
    let decimals = usize::from(share < 9.95);
    format!("{share:.decimals$}%")
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
            let found: Vec<_> = fitting(width)
                .iter()
                .map(|(column, _)| column.title())
                .collect();
            assert_eq!(found.join(" "), titles, "{width}");
        }
    }

    #[test]
    fn columns_stay_within_every_width() {
        for width in 0..400 {
            let columns = fitting(width);
            let used: u16 = columns.iter().map(|(_, width)| width + GAP).sum();
            assert!(used <= width + GAP, "{width}: {columns:?}");
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
            assert_eq!(short_count(count, ""), text);
        }
        for (share, text) in [(0.0, "0.0%"), (9.96, "10%"), (1600.0, "1600%")] {
            assert_eq!(percent(share), text);
        }
    }
}
