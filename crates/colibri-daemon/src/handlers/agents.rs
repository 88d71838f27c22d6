//! `list-agents`, `wait-agent`, `list-runs` and `read-journal`.

use colibri_proto::{
    Agent, ListParams, ListResult, MAX_READ, OutputData, RawResult, ReadParams, ReadResult, Run,
    RunsResult,
};
use colibri_shim::layout;
use colibri_shim::record::{RunRecord, read_lines};
use colibri_types::AgentId;

use super::{find_agent, to_result};
use crate::agent::{RegisteredAgent, read_text};
use crate::errors::CallError;
use crate::registry::Registry;
use crate::{pool, times};

/// Maximum number of runs in an answer; each takes a few hundred bytes of a frame.
const MAX_RUNS: usize = 1000;
/// Maximum number of bytes that are read of the file of runs; a record takes a few hundred.
const MAX_RUNS_FILE_BYTES: u64 = 1 << 20;
/// Maximum size of a page of agents, in bytes; less than a frame.
const MAX_PAGE_BYTES: usize = 768 * 1024;
/// Maximum number of agents that are read for a page. An agent takes more than 200 bytes, so this many always exceed
/// [`MAX_PAGE_BYTES`].
const MAX_PAGE_AGENTS: usize = 4096;

pub(super) fn list(registry: &Registry, params: &ListParams) -> Result<RawResult, CallError> {
    let after = params.after.as_ref().map(|after| after.parse::<AgentId>());
    let after = after.transpose().map_err(CallError::invalid("after"))?;
    let limit = params.limit.map_or(MAX_PAGE_AGENTS, |limit| limit as usize);
    let limit = limit.clamp(1, MAX_PAGE_AGENTS);
    // The agents are encoded one by one: their encoded length limits the page.
    let mut page = ListResult::<RawResult>::default();
    let (mut bytes, mut last) = (0, None);
    for agent in registry.list(after.as_ref(), params.running, limit + 1) {
        let encoded = to_result(&agent.to_wire())?;
        bytes += encoded.get().len();
        if !page.agents.is_empty() && (bytes > MAX_PAGE_BYTES || page.agents.len() >= limit) {
            page.next = last;
            break;
        }
        page.agents.push(encoded);
        last = Some(agent.spec.id.to_string());
    }
    to_result(&page)
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

pub(super) async fn read_journal(
    registry: &Registry,
    params: ReadParams,
) -> Result<ReadResult, CallError> {
    let agent = find_agent(registry, &params.id)?;
    pool::run(move || read(&agent, &params)).await
}

fn read(agent: &RegisteredAgent, params: &ReadParams) -> Result<ReadResult, CallError> {
    let mut journal = agent.journal(params.stream);
    let has_ended = agent.has_ended();
    let offset = match &params.since {
        None => params.offset,
        Some(since) => {
            let since_ns = times::parse_ns(since).map_err(CallError::invalid("since"))?;
            journal.offset_at(since_ns)?
        }
    };
    let chunk = journal.chunk_at(offset)?;
    // Bytes that the agent writes from now on are left for the next call: their time is unknown here.
    let available = match &chunk {
        Some(chunk) if params.timed => chunk.end.saturating_sub(offset),
        Some(_) => MAX_READ,
        None => 0,
    };
    let limit = params.limit.min(MAX_READ).min(available);
    let bytes = read_text(&mut journal, offset, limit)?;
    let next_offset = offset + bytes.len() as u64;
    Ok(ReadResult {
        offset,
        next_offset,
        data: OutputData::from(bytes),
        end: has_ended && next_offset == journal.end_offset()?,
        time: chunk.map(|chunk| times::format_ns(chunk.at_ns)),
    })
}
