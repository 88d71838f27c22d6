//! The model: agents, selection, filter and mode, changed by keys and updates. Does no I/O: it returns an [`Action`] for
//! the loop to execute.

use colibri_client::{Agent, AgentEntry, Roster};
use tui_input::Input;

use super::columns::{self, Column};
use crate::tables::command;

/// An action for the loop to execute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    Quit,
    /// Stop as a job of the shell.
    Suspend,
    /// Redraw the whole screen.
    Redraw,
    /// Run `colibri attach` on the terminal.
    Attach(String),
    /// Send a prompt.
    Prompt {
        id: String,
        text: String,
    },
    Kill(String),
}

/// The part of the screen that receives keys.
#[derive(Debug, Clone, Default)]
pub(super) enum Mode {
    #[default]
    Table,
    Help,
    /// The filter is edited; Esc restores this previous one.
    Filter(String),
    Prompt {
        id: String,
        line: Input,
    },
    /// Asks for confirmation to kill the agent with this id.
    Kill(String),
}

#[derive(Debug, Default)]
pub(super) struct App {
    pub(super) roster: Roster,
    /// Why the connection is lost, so that the table is not current.
    pub(super) lost: Option<String>,
    pub(super) mode: Mode,
    pub(super) filter: Input,
    pub(super) sort: Column,
    pub(super) descending: bool,
    /// Message in the last line, until the next key.
    pub(super) message: Option<String>,
    /// Ids of the filtered and sorted agents.
    pub(super) rows: Vec<String>,
    selected: Option<String>,
    /// Row of the selection; it stays if the selected agent is removed.
    selected_row: usize,
    /// First visible row.
    first_row: usize,
    /// Number of visible rows.
    page: usize,
}

impl App {
    pub(super) fn new(agents: Vec<Agent>) -> Self {
        let mut app = Self {
            page: 1,
            ..Self::default()
        };
        app.roster.replace(agents);
        app.arrange();
        app
    }

    /// Sorts and filters, and scrolls so that the selection is visible in `page` rows.
    pub(super) fn layout(&mut self, page: usize) {
        self.page = page.max(1);
        self.arrange();
        let row = self.position();
        self.first_row = self
            .first_row
            .min(row)
            .max((row + 1).saturating_sub(self.page))
            .min(self.rows.len().saturating_sub(self.page));
    }

    /// Returns the visible agents, each with whether it is selected.
    pub(super) fn visible(&self) -> impl Iterator<Item = (&AgentEntry, bool)> {
        let ids = self.rows.iter().skip(self.first_row).take(self.page);
        ids.filter_map(|id| {
            let selected = self.selected.as_ref() == Some(id);
            Some((self.roster.get(id)?, selected))
        })
    }

    pub(super) fn selected(&self) -> Option<&AgentEntry> {
        self.roster.get(self.selected.as_deref()?)
    }

    /// Returns the running agents to measure: the visible ones, or all matching ones if the order depends on usage.
    pub(super) fn ids_to_measure(&self) -> Vec<String> {
        let by_usage = self.sort.is_number() && !matches!(self.sort, Column::Age | Column::Since);
        let (skip, take) = match by_usage {
            true => (0, usize::MAX),
            false => (self.first_row, self.page),
        };
        let ids = self.rows.iter().skip(skip).take(take);
        ids.filter(|id| self.roster.get(id).is_some_and(AgentEntry::runs))
            .cloned()
            .collect()
    }

    /// Moves the selection by a number of rows.
    pub(super) fn move_selection(&mut self, rows: isize) {
        self.select(self.position().saturating_add_signed(rows));
    }

    pub(super) fn page(&self) -> isize {
        isize::try_from(self.page).unwrap_or(isize::MAX)
    }

    fn select(&mut self, row: usize) {
        self.selected_row = row.min(self.rows.len().saturating_sub(1));
        self.selected = self.rows.get(self.selected_row).cloned();
    }

    fn position(&self) -> usize {
        let selected = self.selected.as_ref();
        let found = self.rows.iter().position(|id| Some(id) == selected);
        found.unwrap_or(self.selected_row)
    }

    /// Filters and sorts the agents.
    pub(super) fn arrange(&mut self) {
        let filter = self.filter.value().to_lowercase();
        let words: Vec<&str> = filter.split_whitespace().collect();
        let entries = self.roster.iter();
        let mut found: Vec<_> = entries.filter(|entry| matches(entry, &words)).collect();
        found.sort_by(|a, b| {
            if self.sort == Column::Age {
                return columns::by_age(a, b, self.descending);
            }
            let (first, second) = if self.descending { (b, a) } else { (a, b) };
            let order = self.sort.compare(first, second);
            // A total order, so that agents with equal values keep their rows.
            order.then_with(|| columns::by_age(a, b, false))
        });
        self.rows = found
            .into_iter()
            .map(|entry| entry.agent.id.clone())
            .collect();
        // The selection stays with its agent, or in its row if the agent is not in the table any more.
        self.select(self.position());
    }
}

/// Returns whether the text of the agent contains each word.
fn matches(entry: &AgentEntry, words: &[&str]) -> bool {
    if words.is_empty() {
        return true;
    }
    let agent = &entry.agent;
    let state = agent.state.to_string();
    let texts = [
        agent.id.as_str(),
        columns::name(entry),
        &state,
        agent.runtime.as_str(),
        columns::jail(entry),
        entry.current_tool.as_deref().unwrap_or_default(),
        &command(agent),
    ];
    let texts = texts.join("\n").to_lowercase();
    words.iter().all(|word| texts.contains(word))
}
