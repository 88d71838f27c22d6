//! The model: what is known, what is looked at, and what keys and news make of both. Pure; what must be done comes
//! back as a [`Command`].

use colibri_client::{Agent, Notification, Roster, UsageResult, Watched};
use tui_input::Input;

use super::columns::{self, Column};

/// What the model wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    Quit,
    /// Stop as a job, as the shell's `fg` continues it.
    Suspend,
    /// Draw everything anew.
    Redraw,
    /// Leave the screen to one agent's output.
    Attach(String),
    /// Send an agent what a person wrote.
    Prompt {
        id: String,
        text: String,
    },
    Kill(String),
    /// `get-agent`.
    Ask(String),
}

/// What the keys go to.
#[derive(Debug, Clone, Default)]
pub(super) enum Mode {
    #[default]
    Table,
    Help,
    /// The filter is typed; the one before comes back with Esc.
    Filter {
        before: String,
    },
    Prompt {
        id: String,
        line: Input,
    },
    /// Waits for a yes.
    Kill {
        id: String,
    },
}

/// Whether the table is of now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Link {
    Live,
    /// The last table is shown; why.
    Lost(String),
}

#[derive(Debug)]
pub(super) struct App {
    pub(super) roster: Roster,
    pub(super) link: Link,
    pub(super) mode: Mode,
    pub(super) filter: Input,
    pub(super) sort: Column,
    pub(super) descending: bool,
    /// Something to know, until the next key.
    pub(super) message: Option<String>,
    /// Ids, filtered and sorted.
    rows: Vec<String>,
    selected: Option<String>,
    /// Where the selection was, for when it goes.
    place: usize,
    first: usize,
    page: usize,
    stale: bool,
}

impl App {
    pub(super) fn new(agents: Vec<Agent>) -> Self {
        let mut app = Self {
            roster: Roster::default(),
            link: Link::Live,
            mode: Mode::Table,
            filter: Input::default(),
            sort: Column::Age,
            descending: Column::Age.descending(),
            message: None,
            rows: Vec::new(),
            selected: None,
            place: 0,
            first: 0,
            page: 1,
            stale: true,
        };
        app.roster.replace(agents);
        app.arrange();
        app
    }

    /// Somebody is told something of an agent.
    pub(super) fn told(&mut self, event: &Notification) -> Option<Command> {
        self.stale = true;
        self.roster.apply(event).map(Command::Ask)
    }

    /// An agent that was asked for.
    pub(super) fn agent(&mut self, agent: Agent) {
        self.stale = true;
        self.roster.insert(agent);
    }

    pub(super) fn measured(&mut self, result: &UsageResult) {
        self.stale = true;
        self.roster.measured(result);
    }

    /// The daemon has gone.
    pub(super) fn lost(&mut self, why: &str) {
        self.link = Link::Lost(why.to_owned());
    }

    /// A daemon is there, with these agents.
    pub(super) fn live(&mut self, agents: Vec<Agent>) {
        self.stale = true;
        self.link = Link::Live;
        self.roster.replace(agents);
    }

    /// What came of a command.
    pub(super) fn say(&mut self, message: String) {
        self.message = Some(message);
    }

    /// Sorts and filters anew if anything has changed, and moves what is seen so that the selection is in it, on a
    /// screen with so many rows.
    pub(super) fn fit(&mut self, page: usize) {
        self.page = page.max(1);
        self.arrange();
        let place = self.position();
        self.first = self
            .first
            .min(place)
            .max((place + 1).saturating_sub(self.page))
            .min(self.rows.len().saturating_sub(self.page));
    }

    /// The agents to show, the selected one marked.
    pub(super) fn shown(&self) -> impl Iterator<Item = (&Watched, bool)> {
        let ids = self.rows.iter().skip(self.first).take(self.page);
        ids.filter_map(|id| {
            let selected = self.selected.as_ref() == Some(id);
            Some((self.roster.get(id)?, selected))
        })
    }

    pub(super) fn selected(&self) -> Option<&Watched> {
        self.roster.get(self.selected.as_deref()?)
    }

    /// How many agents fit the filter.
    pub(super) fn count(&self) -> usize {
        self.rows.len()
    }

    /// Whose usage to ask for: of those that are seen, or where the order hangs on numbers, of all in it.
    pub(super) fn to_measure(&self) -> Vec<String> {
        let by_usage = matches!(
            self.sort,
            Column::Cpu
                | Column::Memory
                | Column::Output
                | Column::Turns
                | Column::Tokens
                | Column::Cost
        );
        let (skip, take) = if by_usage {
            (0, usize::MAX)
        } else {
            (self.first, self.page)
        };
        let ids = self.rows.iter().skip(skip).take(take);
        ids.filter(|id| self.roster.get(id).is_some_and(Watched::runs))
            .cloned()
            .collect()
    }

    pub(super) fn sort_by(&mut self, column: Column, descending: bool) {
        self.sort = column;
        self.descending = descending;
        self.stale = true;
    }

    /// The filter was edited.
    pub(super) fn filtered(&mut self) {
        self.stale = true;
        self.arrange();
    }

    /// Moves the selection by so many rows.
    pub(super) fn step(&mut self, rows: isize) {
        self.arrange();
        self.select(self.position().saturating_add_signed(rows));
    }

    pub(super) fn page(&self) -> isize {
        isize::try_from(self.page).unwrap_or(isize::MAX)
    }

    fn select(&mut self, place: usize) {
        self.place = place.min(self.rows.len().saturating_sub(1));
        self.selected = self.rows.get(self.place).cloned();
    }

    fn position(&self) -> usize {
        let selected = self.selected.as_ref();
        let found = self.rows.iter().position(|id| Some(id) == selected);
        found.unwrap_or(self.place)
    }

    fn arrange(&mut self) {
        if !std::mem::take(&mut self.stale) {
            return;
        }
        let words: Vec<String> = self
            .filter
            .value()
            .split_whitespace()
            .map(str::to_lowercase)
            .collect();
        let mut found: Vec<&Watched> = self
            .roster
            .iter()
            .filter(|watched| fits(watched, &words))
            .collect();
        found.sort_by(|a, b| {
            if self.sort == Column::Age {
                return columns::by_age(a, b, self.descending);
            }
            let order = self.sort.compare(a, b);
            let order = if self.descending {
                order.reverse()
            } else {
                order
            };
            // A total order, so that rows with equal values keep their places.
            order.then_with(|| columns::by_age(a, b, false))
        });
        self.rows = found
            .into_iter()
            .map(|watched| watched.agent.id.clone())
            .collect();
        // The selection stays with its agent; where that has gone, with its place.
        self.select(self.position());
    }
}

/// Every word is somewhere in what is shown of the agent.
fn fits(watched: &Watched, words: &[String]) -> bool {
    if words.is_empty() {
        return true;
    }
    let agent = &watched.agent;
    let runtime = format!("{:?}", agent.runtime);
    let state = agent.state.to_string();
    let texts = [
        agent.id.as_str(),
        columns::name(watched),
        &state,
        &runtime,
        columns::jail(watched),
        watched.current_tool.as_deref().unwrap_or_default(),
        &agent.program,
        &agent.args.join(" "),
    ];
    let texts = texts.join("\n").to_lowercase();
    words.iter().all(|word| texts.contains(word))
}
