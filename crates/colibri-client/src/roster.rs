//! All agents as a subscriber knows them: a list, kept current by notifications and by what is measured.
//! Pure: whoever has it does the asking.

use std::collections::{BTreeMap, HashMap};

use colibri_proto::{Agent, Notification, StateEvent, Usage, UsageResult};

/// An agent with what has been told of it since it was listed.
#[derive(Debug, Clone, PartialEq)]
pub struct Watched {
    /// As it was listed, with the state and the byte counts of now.
    pub agent: Agent,
    /// Since when it is in its state (RFC 3339); `None` until that is told.
    pub since: Option<String>,
    /// The tool that it is using.
    pub current_tool: Option<String>,
    /// The last error that it reported, or why it is stalled, waits for its next run, or has ended.
    pub last_error: Option<String>,
    /// What it uses, where it was measured and runs.
    pub used: Option<Used>,
}

/// What an agent uses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Used {
    /// Share of a CPU in percent between the last two measurements; `None` after the first one. Two CPUs that are
    /// busy are 200.
    pub cpu_percent: Option<f64>,
    /// See [`Usage::cpu_ms`].
    pub cpu_ms: u64,
    /// See [`Usage::memory_bytes`].
    pub memory_bytes: u64,
    /// See [`Usage::processes`].
    pub processes: u32,
    at_ms: u64,
}

impl Watched {
    fn new(agent: Agent) -> Self {
        let view = agent.view.as_ref();
        Self {
            since: agent.exited_at.clone(),
            current_tool: view.and_then(|view| view.current_tool.clone()),
            last_error: agent
                .error
                .clone()
                .or_else(|| view.and_then(|view| view.last_error.clone())),
            used: None,
            agent,
        }
    }

    /// Whether it runs, or will again.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.agent.exited_at.is_none()
    }

    fn tell(&mut self, event: &StateEvent) {
        self.agent.state = event.state;
        self.since = Some(event.since.clone());
        self.current_tool.clone_from(&event.current_tool);
        self.last_error.clone_from(&event.last_error);
    }

    fn measured(&mut self, usage: &Usage, at_ms: u64) {
        let cpu_percent = self.used.and_then(|before| {
            let passed = at_ms.checked_sub(before.at_ms).filter(|ms| *ms > 0)?;
            let used = usage.cpu_ms.checked_sub(before.cpu_ms)?;
            Some(used as f64 * 100.0 / passed as f64)
        });
        self.used = Some(Used {
            cpu_percent,
            cpu_ms: usage.cpu_ms,
            memory_bytes: usage.memory_bytes,
            processes: usage.processes,
            at_ms,
        });
        self.agent.stdout_bytes = usage.stdout_bytes;
        self.agent.stderr_bytes = usage.stderr_bytes;
        if let Some(view) = &mut self.agent.view {
            view.turns = usage.turns;
            view.input_tokens = usage.input_tokens;
            view.output_tokens = usage.output_tokens;
            view.cost_usd = usage.cost_usd;
        }
    }
}

/// All agents by id. Feed it the notifications of a subscription without an `id`, which must begin before the
/// agents are listed.
#[derive(Debug, Default, Clone)]
pub struct Roster {
    agents: BTreeMap<String, Watched>,
    /// The latest states of agents that were not listed yet.
    early: HashMap<String, StateEvent>,
}

impl Roster {
    /// Begins anew with these agents, as after a new connection.
    pub fn replace(&mut self, agents: Vec<Agent>) {
        self.early.clear();
        self.agents = agents
            .into_iter()
            .map(|agent| (agent.id.clone(), Watched::new(agent)))
            .collect();
    }

    /// Takes in one agent as it was asked for.
    pub fn insert(&mut self, agent: Agent) {
        let before = self.agents.remove(&agent.id);
        let early = self.early.remove(&agent.id);
        let mut watched = Watched::new(agent);
        if watched.runs() {
            if let Some(before) = before.filter(|before| before.agent.state == watched.agent.state)
            {
                watched.since = before.since;
                watched.used = before.used;
            }
            if let Some(early) = early.filter(|early| early.state == watched.agent.state) {
                watched.since = Some(early.since);
            }
        }
        self.agents.insert(watched.agent.id.clone(), watched);
    }

    /// Takes in what was told. Returns an agent to ask for with `get-agent`, and to [`Roster::insert`]: one that is
    /// new, or whose last numbers are known now that it has ended.
    pub fn apply(&mut self, event: &Notification) -> Option<String> {
        match event {
            Notification::AgentOutput(_)
            | Notification::AgentSpawned(_)
            | Notification::AgentRun(_)
            | Notification::AgentKill(_)
            | Notification::AgentsMissed(_) => None,
            Notification::AgentState(event) => match self.agents.get_mut(&event.id) {
                Some(watched) => {
                    watched.tell(event);
                    None
                }
                None => {
                    let first = self.early.insert(event.id.clone(), event.clone());
                    first.is_none().then(|| event.id.clone())
                }
            },
            Notification::AgentExit(event) => {
                if let Some(watched) = self.agents.get_mut(&event.id) {
                    watched.agent.state = event.state;
                    watched.agent.pid = None;
                    watched.agent.exit = event.exit;
                    watched.agent.exited_at = Some(event.exited_at.clone());
                    watched.since = Some(event.exited_at.clone());
                    watched.current_tool = None;
                    watched.used = None;
                    if event.error.is_some() {
                        watched.last_error.clone_from(&event.error);
                    }
                }
                Some(event.id.clone())
            }
            Notification::AgentRemoved(event) => {
                self.agents.remove(&event.id);
                self.early.remove(&event.id);
                None
            }
        }
    }

    /// Takes in what was measured. Of agents that are not in the answer the last is kept.
    pub fn measured(&mut self, result: &UsageResult) {
        for usage in &result.agents {
            if let Some(watched) = self.agents.get_mut(&usage.id)
                && watched.runs()
            {
                watched.measured(usage, result.at_ms);
            }
        }
    }

    /// One agent.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Watched> {
        self.agents.get(id)
    }

    /// All agents, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Watched> {
        self.agents.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use colibri_proto::{AgentState, ExitEvent, RemovedEvent};
    use serde_json::json;

    fn agent(id: &str, state: &str) -> Agent {
        let agent = json!({"id": id, "name": null, "state": state, "pid": 7, "program": "sh", "args": [],
            "jail": null, "runtime": "generic", "run": 1, "started_at": "T0", "stdout_bytes": 0,
            "stderr_bytes": 0});
        serde_json::from_value(agent).unwrap()
    }

    fn state(id: &str, state: AgentState, since: &str, tool: Option<&str>) -> Notification {
        Notification::AgentState(StateEvent {
            subscription: 0,
            id: id.to_owned(),
            state,
            previous: None,
            merged: 0,
            since: since.to_owned(),
            current_tool: tool.map(str::to_owned),
            last_error: None,
        })
    }

    fn used(id: &str, at_ms: u64, cpu_ms: u64) -> UsageResult {
        let usage = json!({"id": id, "cpu_ms": cpu_ms, "memory_bytes": 4096, "processes": 2, "stdout_bytes": 10,
            "stderr_bytes": 0, "turns": 0, "input_tokens": 0, "output_tokens": 0, "cost_usd": 0.0});
        UsageResult {
            at_ms,
            agents: vec![serde_json::from_value(usage).unwrap()],
        }
    }

    #[test]
    fn states_exits_and_removals_are_followed() {
        let mut roster = Roster::default();
        roster.replace(vec![agent("a", "starting")]);
        assert_eq!(roster.get("a").unwrap().since, None, "not told yet");
        let change = state("a", AgentState::Working, "T1", Some("bash"));
        assert_eq!(roster.apply(&change), None);
        let known = roster.get("a").unwrap();
        assert_eq!(known.agent.state, AgentState::Working);
        assert_eq!(
            (known.since.as_deref(), known.current_tool.as_deref()),
            (Some("T1"), Some("bash"))
        );
        let exit = Notification::AgentExit(ExitEvent {
            subscription: 0,
            id: "a".into(),
            state: AgentState::Error,
            exit: None,
            exit_note: None,
            error: Some("lost".into()),
            exited_at: "T2".into(),
        });
        assert_eq!(
            roster.apply(&exit).as_deref(),
            Some("a"),
            "its last numbers"
        );
        let known = roster.get("a").unwrap();
        assert!(!known.runs());
        assert_eq!(
            (known.since.as_deref(), known.last_error.as_deref()),
            (Some("T2"), Some("lost"))
        );
        let removed = Notification::AgentRemoved(RemovedEvent {
            subscription: 0,
            id: "a".into(),
        });
        assert_eq!(roster.apply(&removed), None);
        assert_eq!(roster.iter().count(), 0);
    }

    #[test]
    fn a_new_agent_is_asked_for_once_and_keeps_what_was_told_before_it_was_listed() {
        let mut roster = Roster::default();
        let starting = state("b", AgentState::Starting, "T1", None);
        assert_eq!(roster.apply(&starting).as_deref(), Some("b"));
        let working = state("b", AgentState::Working, "T2", None);
        assert_eq!(roster.apply(&working), None, "it is asked for already");
        roster.insert(agent("b", "working"));
        assert_eq!(roster.get("b").unwrap().since.as_deref(), Some("T2"));
        roster.insert(agent("b", "working"));
        assert_eq!(
            roster.get("b").unwrap().since.as_deref(),
            Some("T2"),
            "kept"
        );
    }

    #[test]
    fn a_share_of_the_cpu_takes_two_measurements_of_one_daemon() {
        let mut roster = Roster::default();
        roster.replace(vec![agent("a", "working")]);
        for (at_ms, cpu_ms, share) in [
            (1000, 50, None),
            (3000, 1050, Some(50.0)),
            (3000, 1060, None),
            (4000, 4060, Some(300.0)),
            // Another daemon, whose clock begins anew.
            (100, 4070, None),
            (1100, 4070, Some(0.0)),
        ] {
            roster.measured(&used("a", at_ms, cpu_ms));
            let watched = roster.get("a").unwrap();
            assert_eq!(watched.used.unwrap().cpu_percent, share, "{at_ms}");
            assert_eq!(watched.agent.stdout_bytes, 10);
        }
        roster.measured(&used("nobody", 1, 1));
        assert_eq!(roster.iter().count(), 1);
    }
}
