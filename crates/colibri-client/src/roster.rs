//! A list of all agents that a subscriber keeps current from notifications and measurements. Does no I/O: the caller
//! makes the requests.

use std::collections::{BTreeMap, HashMap};

use colibri_proto::{Agent, Notification, StateEvent, Usage, UsageResult};

/// An agent with its changes since it was listed.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentEntry {
    /// The listed agent, with its current state and byte counts.
    pub agent: Agent,
    /// Start of the current state (RFC 3339); `None` until an event contains it.
    pub since: Option<String>,
    /// Tool in use.
    pub current_tool: Option<String>,
    /// Last error that the agent reported, or the reason why it is stalled, waits for its next run, or has ended.
    pub last_error: Option<String>,
    /// Resource usage, if the agent runs and was measured.
    pub usage: Option<MeasuredUsage>,
}

/// Measured resource usage of an agent.
#[derive(Debug, Clone, PartialEq)]
pub struct MeasuredUsage {
    /// CPU time between the last two measurements, in percent of one CPU: two busy CPUs are 200. `None` after the first
    /// measurement.
    pub cpu_percent: Option<f64>,
    /// The last measurement.
    pub last: Usage,
    at_ms: u64,
}

impl AgentEntry {
    fn new(agent: Agent) -> Self {
        let view = agent.view.as_ref();
        Self {
            since: agent.exited_at.clone(),
            current_tool: view.and_then(|view| view.current_tool.clone()),
            last_error: agent
                .error
                .clone()
                .or_else(|| view.and_then(|view| view.last_error.clone())),
            usage: None,
            agent,
        }
    }

    /// Returns whether the agent runs or waits for its next run.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.agent.exited_at.is_none()
    }

    fn apply_usage(&mut self, usage: &Usage, at_ms: u64) {
        let cpu_percent = self.usage.as_ref().and_then(|before| {
            let elapsed_ms = at_ms.checked_sub(before.at_ms).filter(|ms| *ms > 0)?;
            let cpu_ms = usage.cpu_ms.checked_sub(before.last.cpu_ms)?;
            Some(cpu_ms as f64 * 100.0 / elapsed_ms as f64)
        });
        self.usage = Some(MeasuredUsage {
            cpu_percent,
            last: usage.clone(),
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

/// All agents by id. Pass it the notifications of a subscription without an `id`, which must begin before the agents are
/// listed.
#[derive(Debug, Default, Clone)]
pub struct Roster {
    agents: BTreeMap<String, AgentEntry>,
    /// The latest states of agents that are not in the list yet.
    unlisted: HashMap<String, StateEvent>,
}

impl Roster {
    /// Replaces all agents, after a reconnect.
    pub fn replace(&mut self, agents: Vec<Agent>) {
        self.unlisted.clear();
        self.agents = agents
            .into_iter()
            .map(|agent| (agent.id.clone(), AgentEntry::new(agent)))
            .collect();
    }

    /// Adds or updates one agent from the response of `get-agent`.
    pub fn insert(&mut self, agent: Agent) {
        let before = self.agents.remove(&agent.id);
        let event = self.unlisted.remove(&agent.id);
        let mut entry = AgentEntry::new(agent);
        if entry.runs() {
            if let Some(before) = before.filter(|before| before.agent.state == entry.agent.state) {
                entry.since = before.since;
                entry.usage = before.usage;
            }
            if let Some(event) = event.filter(|event| event.state == entry.agent.state) {
                entry.since = Some(event.since);
            }
        }
        self.agents.insert(entry.agent.id.clone(), entry);
    }

    /// Applies a notification. Returns the id of an agent that the caller requests with `get-agent` and passes to
    /// [`Roster::insert`]: one that is new, or one that has ended and whose final numbers are known now.
    pub fn apply(&mut self, event: &Notification) -> Option<String> {
        match event {
            Notification::AgentState(event) => match self.agents.get_mut(&event.id) {
                Some(entry) => {
                    entry.agent.state = event.state;
                    entry.since = Some(event.since.clone());
                    entry.current_tool.clone_from(&event.current_tool);
                    entry.last_error.clone_from(&event.last_error);
                    None
                }
                None => {
                    let first = self.unlisted.insert(event.id.clone(), event.clone());
                    first.is_none().then(|| event.id.clone())
                }
            },
            Notification::AgentExit(event) => {
                if let Some(entry) = self.agents.get_mut(&event.id) {
                    entry.agent.state = event.state;
                    entry.agent.pid = None;
                    entry.agent.exit = event.exit;
                    entry.agent.exited_at = Some(event.exited_at.clone());
                    entry.since = Some(event.exited_at.clone());
                    entry.current_tool = None;
                    entry.usage = None;
                    if event.error.is_some() {
                        entry.last_error.clone_from(&event.error);
                    }
                }
                Some(event.id.clone())
            }
            Notification::AgentRemoved(event) => {
                self.agents.remove(&event.id);
                self.unlisted.remove(&event.id);
                None
            }
            _ => None,
        }
    }

    /// Applies a measurement. Agents that are not in it keep their last one.
    pub fn apply_usage(&mut self, result: &UsageResult) {
        for usage in &result.agents {
            if let Some(entry) = self.agents.get_mut(&usage.id)
                && entry.runs()
            {
                entry.apply_usage(usage, result.at_ms);
            }
        }
    }

    /// Returns the agent with this id.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&AgentEntry> {
        self.agents.get(id)
    }

    /// Returns all agents in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &AgentEntry> {
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
    fn states_exits_and_removals_are_applied() {
        let mut roster = Roster::default();
        roster.replace(vec![agent("a", "starting")]);
        assert_eq!(roster.get("a").unwrap().since, None, "not known yet");
        let change = state("a", AgentState::Working, "T1", Some("bash"));
        assert_eq!(roster.apply(&change), None);
        let entry = roster.get("a").unwrap();
        assert_eq!(entry.agent.state, AgentState::Working);
        assert_eq!(
            (entry.since.as_deref(), entry.current_tool.as_deref()),
            (Some("T1"), Some("bash"))
        );
        let exit = Notification::AgentExit(ExitEvent {
            subscription: 0,
            id: "a".into(),
            state: AgentState::Error,
            exit: None,
            error: Some("lost".into()),
            exited_at: "T2".into(),
        });
        assert_eq!(
            roster.apply(&exit).as_deref(),
            Some("a"),
            "its final numbers"
        );
        let entry = roster.get("a").unwrap();
        assert!(!entry.runs());
        assert_eq!(
            (entry.since.as_deref(), entry.last_error.as_deref()),
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
    fn new_agent_is_requested_once_and_keeps_earlier_state() {
        let mut roster = Roster::default();
        let starting = state("b", AgentState::Starting, "T1", None);
        assert_eq!(roster.apply(&starting).as_deref(), Some("b"));
        let working = state("b", AgentState::Working, "T2", None);
        assert_eq!(roster.apply(&working), None, "it is requested already");
        roster.insert(agent("b", "working"));
        assert_eq!(roster.get("b").unwrap().since.as_deref(), Some("T2"));
        roster.insert(agent("b", "working"));
        assert_eq!(
            roster.get("b").unwrap().since.as_deref(),
            Some("T2"),
            "unchanged"
        );
    }

    #[test]
    fn cpu_share_needs_two_measurements_of_one_daemon() {
        let mut roster = Roster::default();
        roster.replace(vec![agent("a", "working")]);
        for (at_ms, cpu_ms, share) in [
            (1000, 50, None),
            (3000, 1050, Some(50.0)),
            (3000, 1060, None),
            (4000, 4060, Some(300.0)),
            // Another daemon, whose clock starts at 0.
            (100, 4070, None),
            (1100, 4070, Some(0.0)),
        ] {
            roster.apply_usage(&used("a", at_ms, cpu_ms));
            let entry = roster.get("a").unwrap();
            assert_eq!(entry.usage.as_ref().unwrap().cpu_percent, share, "{at_ms}");
            assert_eq!(entry.agent.stdout_bytes, 10);
        }
        roster.apply_usage(&used("unknown", 1, 1));
        assert_eq!(roster.iter().count(), 1);
    }
}
