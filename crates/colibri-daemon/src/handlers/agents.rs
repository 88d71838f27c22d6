//! `list-agents`, `wait-agent` and `list-runs`.

use colibri_proto::{Agent, ListParams, ListResult, RawResult, Run, RunsResult};
use colibri_shim::layout;
use colibri_shim::record::{RunRecord, read_lines};
use colibri_types::AgentId;

use super::{find_agent, to_result};
use crate::agent::RegisteredAgent;
use crate::errors::CallError;
use crate::registry::Registry;
use crate::{pool, times};

/// Maximum number of runs in an answer; each takes a few hundred bytes of a frame.
const MAX_RUNS: usize = 1000;
/// Maximum number of bytes that are read of the file of runs; a record takes a few hundred.
const MAX_RUNS_FILE_BYTES: u64 = 1 << 20;
/// Number of agents that are looked up at a time, so that a small page does not walk all agents.
const LIST_BATCH: usize = 256;
/// Maximum size of a page of agents, in bytes; less than a frame.
const MAX_PAGE_BYTES: usize = 768 * 1024;

pub(super) fn list(registry: &Registry, params: &ListParams) -> Result<RawResult, CallError> {
    let mut after = params
        .after
        .as_ref()
        .map(|after| after.parse::<AgentId>())
        .transpose()
        .map_err(CallError::invalid("after"))?;
    let limit = params.limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    });
    // The agents are encoded one by one: their encoded length limits the page.
    let mut page = ListResult::<RawResult>::default();
    let mut bytes = 0;
    loop {
        let batch = registry.list(after.as_ref(), params.running, LIST_BATCH);
        let is_last = batch.len() < LIST_BATCH;
        for agent in batch {
            let encoded = to_result(&agent.to_wire())?;
            bytes += encoded.get().len();
            if !page.agents.is_empty() && (bytes > MAX_PAGE_BYTES || page.agents.len() >= limit) {
                page.next = after.map(|id| id.to_string());
                return to_result(&page);
            }
            page.agents.push(encoded);
            after = Some(agent.spec.id.clone());
        }
        if is_last {
            return to_result(&page);
        }
    }
}

/// Returns an agent after it has ended.
pub(super) async fn wait(registry: &Registry, id: &str) -> Result<Agent, CallError> {
    let agent = find_agent(registry, id)?;
    let mut latest = agent.latest.subscribe();
    let _ = latest.wait_for(|latest| latest.exit.is_some()).await;
    Ok(agent.to_wire())
}

pub(super) async fn list_runs(registry: &Registry, id: &str) -> Result<RunsResult, CallError> {
    let agent = find_agent(registry, id)?;
    pool::run(move || read_runs(&agent)).await
}

fn read_runs(agent: &RegisteredAgent) -> Result<RunsResult, CallError> {
    let path = agent.directory.join(layout::RUNS);
    let records: Vec<RunRecord> = read_lines(&path, MAX_RUNS_FILE_BYTES)
        .map_err(CallError::internal(&format!("read {}", path.display())))?;
    let skipped = records.len().saturating_sub(MAX_RUNS);
    let runs = records.into_iter().skip(skipped).map(|record| Run {
        run: record.run,
        started_at: times::format_ns(record.started_at_ns),
        exited_at: times::format_ns(record.exited_at_ns),
        exit: Some(record.exit()),
        error: record.error,
        stdout: record.stdout,
        stderr: record.stderr,
    });
    Ok(RunsResult {
        runs: runs.collect(),
    })
}
