//! What agents use: one look at all processes of the host for all agents that are asked for.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use colibri_proto::{Answer, ErrorKind, RpcError, Usage, UsageParams, UsageResult};
use colibri_shim::layout;
use colibri_shim::record::{self, ShimRecord};
use colibri_sys::process;

use crate::handlers::reply;
use crate::pool;
use crate::registry::{Entry, Registry};

/// The clock of `at_ms`.
static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// `get-usage`. An agent that has ended, or that there is not, is left out.
pub(crate) async fn measure(registry: &Registry, params: UsageParams) -> Result<Answer, RpcError> {
    let wanted: Option<HashSet<String>> = params.ids.map(|ids| ids.into_iter().collect());
    let mut entries = registry.list_running();
    entries.retain(|entry| {
        wanted
            .as_ref()
            .is_none_or(|wanted| wanted.contains(entry.spec.id.as_str()))
    });
    let begin = *BEGIN;
    // It reads a file for each process of the host.
    let looked = pool::long(move || look(&entries, begin)).await;
    let failed = |why: String| {
        RpcError::new(
            ErrorKind::Internal,
            format!("the host's processes cannot be listed: {why}"),
        )
    };
    reply(
        &looked
            .map_err(|error| failed(error.to_string()))?
            .map_err(|error| failed(error.to_string()))?,
    )
}

fn look(entries: &[Arc<Entry>], begin: Instant) -> std::io::Result<UsageResult> {
    let shims: Vec<Option<i32>> = entries.iter().map(|entry| shim(entry)).collect();
    let roots: Vec<i32> = shims.iter().flatten().copied().collect();
    let used: HashMap<i32, process::Usage> = process::usage(&roots)?;
    let at_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
    let agents = entries
        .iter()
        .zip(shims)
        .filter_map(|(entry, shim)| Some((entry, used.get(&shim?)?)))
        .map(|(entry, used)| {
            let latest = entry.latest.borrow();
            Usage {
                id: entry.spec.id.to_string(),
                cpu_ms: used.cpu_ms,
                memory_bytes: used.memory_bytes,
                processes: used.processes,
                stdout_bytes: latest.stdout,
                stderr_bytes: latest.stderr,
                turns: latest.view.turns,
                input_tokens: latest.view.input_tokens,
                output_tokens: latest.view.output_tokens,
                cost_usd: latest.view.cost_usd,
            }
        })
        .collect();
    Ok(UsageResult { at_ms, agents })
}

/// The process whose descendants are the agent. None where the shim has just gone.
fn shim(entry: &Entry) -> Option<i32> {
    let record = record::read::<ShimRecord>(&entry.directory.join(layout::SHIM));
    Some(record.ok().flatten()?.shim_pid)
}
