//! `get-usage`: CPU time, memory and processes of agents, from one scan of the host's processes.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use colibri_proto::{Usage, UsageParams, UsageResult};
use colibri_shim::control::clock_ms;
use colibri_shim::layout;
use colibri_shim::record::{self, ShimRecord};
use colibri_sys::process;

use crate::agent::RegisteredAgent;
use crate::errors::CallError;
use crate::pool;
use crate::registry::Registry;

/// Measures running agents; unknown and ended ones are left out.
pub(super) async fn measure(
    registry: &Registry,
    params: UsageParams,
) -> Result<UsageResult, CallError> {
    let ids: Option<HashSet<String>> = params.ids.map(|ids| ids.into_iter().collect());
    let mut agents = registry.list_running();
    agents.retain(|agent| {
        ids.as_ref()
            .is_none_or(|ids| ids.contains(agent.spec.id.as_str()))
    });
    // Long work: the scan reads a file for each process of the host.
    let scanned = pool::run_in(&pool::LONG_WORK_SLOTS, move || scan(&agents)).await;
    scanned.map_err(CallError::internal("list the host's processes"))
}

fn scan(agents: &[Arc<RegisteredAgent>]) -> io::Result<UsageResult> {
    let with_shim = agents
        .iter()
        .filter_map(|agent| Some((shim_pid(agent)?, agent)));
    let (shims, agents): (Vec<i32>, Vec<_>) = with_shim.unzip();
    let by_shim = process::usage(&shims)?;
    let at_ms = clock_ms();
    let agents = agents.into_iter().zip(shims).filter_map(|(agent, shim)| {
        let (used, latest) = (by_shim.get(&shim)?, agent.latest.borrow());
        Some(Usage {
            id: agent.spec.id.to_string(),
            cpu_ms: used.cpu_ms,
            memory_bytes: used.memory_bytes,
            processes: used.processes,
            stdout_bytes: latest.status.stdout,
            stderr_bytes: latest.status.stderr,
            turns: latest.view.turns,
            input_tokens: latest.view.input_tokens,
            output_tokens: latest.view.output_tokens,
            cost_usd: latest.view.cost_usd,
        })
    });
    Ok(UsageResult {
        at_ms,
        agents: agents.collect(),
    })
}

/// Returns the shim, whose descendants are the agent's processes; `None` if it has just ended.
fn shim_pid(agent: &RegisteredAgent) -> Option<i32> {
    let record = record::read::<ShimRecord>(&agent.directory.join(layout::SHIM));
    Some(record.ok().flatten()?.shim_pid)
}
