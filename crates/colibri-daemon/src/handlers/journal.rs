//! `read-journal`.

use colibri_proto::{MAX_READ, OutputData, ReadParams, ReadResult};

use super::find_agent;
use crate::agent::{RegisteredAgent, read_text};
use crate::errors::CallError;
use crate::registry::Registry;
use crate::{pool, times};

pub(super) async fn read(registry: &Registry, params: ReadParams) -> Result<ReadResult, CallError> {
    let agent = find_agent(registry, &params.id)?;
    pool::run(move || read_journal(&agent, &params)).await
}

fn read_journal(agent: &RegisteredAgent, params: &ReadParams) -> Result<ReadResult, CallError> {
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
