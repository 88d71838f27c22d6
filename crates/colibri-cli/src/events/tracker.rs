//! Converts notifications into lines, and tracks agents across several daemons.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use colibri_client::{
    Agent, ClientError, Notification, OutputChunk, OutputData, Stream, new_output,
};

use super::line::{EventKind, EventLine, now};

/// The state of agents according to the printed lines.
#[derive(Default)]
pub(super) struct Tracker {
    names: BTreeMap<String, String>,
    /// Ids of the agents that run, according to the events so far.
    running: BTreeSet<String>,
    /// Offsets of the next bytes, by agent, for agents that have not ended and whose output is printed.
    pub(super) offsets: BTreeMap<String, HashMap<Stream, u64>>,
}

impl Tracker {
    pub(super) fn add_names(&mut self, agents: &[Agent]) {
        let name_of = |agent: &Agent| Some((agent.id.clone(), agent.name.clone()?));
        self.names.extend(agents.iter().filter_map(name_of));
    }

    /// Returns the offset of the next byte of a stream, and starts to track the agent's output.
    pub(super) fn next_offset(&mut self, id: &str, stream: Stream) -> &mut u64 {
        let offsets = self.offsets.entry(id.to_owned()).or_default();
        offsets.entry(stream).or_default()
    }

    fn line_of(&self, id: String, time: String, event: EventKind) -> EventLine {
        EventLine {
            time,
            name: self.names.get(&id).cloned(),
            id: Some(id),
            event,
        }
    }

    /// Returns the line for a chunk of output, and advances the offset of its stream.
    pub(super) fn output_line(&mut self, id: &str, chunk: OutputChunk) -> EventLine {
        *self.next_offset(id, chunk.stream) = chunk.offset + chunk.bytes.len() as u64;
        let event = EventKind::Output {
            stream: chunk.stream,
            offset: chunk.offset,
            data: OutputData::from(chunk.bytes),
        };
        self.line_of(id.to_owned(), chunk.time.unwrap_or_else(now), event)
    }

    /// Returns the lines for tracked agents that ended, or were removed, while no daemon ran. Named agents are followed
    /// to their end, so that only their removal is reported.
    pub(super) fn missed_ends(&mut self, agents: &[Agent], are_named: bool) -> Vec<EventLine> {
        let agents: BTreeMap<&str, &Agent> =
            agents.iter().map(|agent| (&*agent.id, agent)).collect();
        let mut lines = Vec::new();
        for id in std::mem::take(&mut self.running) {
            match agents.get(&*id).map(|agent| (agent, &agent.exited_at)) {
                None => lines.push(self.line_of(id, now(), EventKind::Removed {})),
                Some((agent, Some(exited_at))) if !are_named => {
                    let event = EventKind::exit(agent.state, agent.exit, agent.error.clone());
                    lines.push(self.line_of(id, exited_at.clone(), event));
                }
                Some(_) => drop(self.running.insert(id)),
            }
        }
        lines
    }

    /// Returns the line for a notification; `None` for output that was printed before.
    pub(super) fn line(&mut self, event: Notification) -> Result<Option<EventLine>, ClientError> {
        let (time, id, event) = match event {
            Notification::AgentSpawned(event) => {
                if let Some(name) = event.name {
                    self.names.insert(event.id.clone(), name);
                }
                let line = EventKind::Spawned {
                    program: event.program,
                    runtime: event.runtime,
                };
                (event.started_at, event.id, line)
            }
            Notification::AgentState(event) => {
                let line = EventKind::State {
                    state: event.state,
                    previous_state: event.previous,
                    merged: event.merged,
                    current_tool: event.current_tool,
                    error: event.last_error,
                };
                self.running.insert(event.id.clone());
                (event.since, event.id, line)
            }
            Notification::AgentRun(event) => {
                let line = EventKind::Run {
                    run: event.run,
                    merged: event.merged,
                    error: event.error,
                };
                (event.at, event.id, line)
            }
            Notification::AgentKill(event) => {
                let line = EventKind::Kill {
                    signal: event.signal,
                    escalate: event.escalate,
                    uid: event.uid,
                    merged: event.merged,
                };
                (event.at, event.id, line)
            }
            Notification::AgentNetwork(event) => {
                let line = EventKind::Network {
                    record: event.record.clone(),
                    merged: event.merged,
                };
                (event.record.at, event.id, line)
            }
            Notification::AgentExit(event) => {
                self.forget(&event.id);
                let line = EventKind::exit(event.state, event.exit, event.error);
                (event.exited_at, event.id, line)
            }
            Notification::AgentOutput(event) => {
                let id = event.id.clone();
                let next = self.next_offset(&id, event.stream);
                let chunk = new_output(event, next)?;
                return Ok(chunk.map(|chunk| self.output_line(&id, chunk)));
            }
            // Not requested.
            Notification::AgentTerminal(_) => return Ok(None),
            Notification::AgentRemoved(event) => {
                self.forget(&event.id);
                (now(), event.id, EventKind::Removed {})
            }
            Notification::AgentsMissed(event) => {
                let reason = "agents were started, ended and removed faster than events were read";
                return Ok(Some(EventLine::gap(reason, Some(event.agents))));
            }
        };
        Ok(Some(self.line_of(id, time, event)))
    }

    fn forget(&mut self, id: &str) {
        self.running.remove(id);
        self.offsets.remove(id);
    }
}
