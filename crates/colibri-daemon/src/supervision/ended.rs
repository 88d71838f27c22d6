//! Views of ended agents: stored in `view.json`, or parsed from the journal if that file is missing.

use std::path::Path;
use std::sync::Arc;

use colibri_glasspane::AgentView;
use colibri_shim::record::{self, Durability, ExitRecord};
use tokio::sync::Semaphore;

use super::parser::{EventParser, MAX_BACKLOG_BYTES};
use crate::agent::{RegisteredAgent, new_pane};
use crate::pool;

/// Limits the number of ended agents that are parsed concurrently.
static PARSE_ENDED_SLOTS: Semaphore = Semaphore::const_new(1);

/// File in an agent's directory: its final view.
const VIEW_FILE: &str = "view.json";

/// Reads the stored view of an ended agent.
pub(crate) fn read_view(directory: &Path) -> Option<AgentView> {
    let path = directory.join(VIEW_FILE);
    record::read(&path).unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), %error, "cannot read the final view of an agent; parsing its output again");
        None
    })
}

/// Parses the rest of the output of an ended agent, records its exit, and stores the final view of an agent with events.
pub(super) async fn parse_rest(
    parser: EventParser,
    exit: &ExitRecord,
    max_backlog: u64,
    now: u64,
) -> EventParser {
    let mut parser = parser.parse_all(exit.stdout_bytes, max_backlog, now).await;
    let (ended_ms, error) = (exit.exited_at_ns / 1_000_000, exit.error.as_deref());
    parser.pane.record_exit(&exit.exit(), error, ended_ms);
    if !parser.pane.needs_output() {
        return parser;
    }
    let path = parser.agent.directory.join(VIEW_FILE);
    let view = parser.pane.view().clone();
    pool::run(move || {
        if let Err(error) = record::replace(&path, &view, Durability::Process) {
            tracing::warn!(path = %path.display(), %error, "cannot store the final view of an agent; the next daemon parses its output again");
        }
    })
    .await;
    parser
}

/// Parses the output of an agent that ended while no daemon ran.
pub(crate) async fn parse_ended(agent: Arc<RegisteredAgent>) {
    let Some(exit) = agent.latest.borrow().exit.clone() else {
        return;
    };
    // Running agents have priority: one ended agent is parsed at a time.
    let _slot = PARSE_ENDED_SLOTS.acquire().await;
    let pane = new_pane(&agent.spec);
    let ended_ms = exit.exited_at_ns / 1_000_000;
    let parser = EventParser::new(agent.clone(), pane);
    let parser = parse_rest(parser, &exit, MAX_BACKLOG_BYTES, ended_ms).await;
    let view = parser.pane.view().clone();
    agent.latest.send_modify(|latest| latest.view = view);
}
