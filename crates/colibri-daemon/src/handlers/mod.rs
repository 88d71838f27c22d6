//! What each method of the protocol does, one file for each group of methods.

mod admin;
mod agents;
mod control;
mod spawn;
mod usage;

use std::sync::Arc;
use std::time::Instant;

use colibri_proto::{Call, Empty, ErrorKind, IdParams, RawResult, RpcError, SpawnResult};
use colibri_types::AgentId;
use serde::Serialize;

use crate::agent::RegisteredAgent;
use crate::daemon::DaemonState;
use crate::daemon::audit::Peer;
use crate::errors::CallError;
use crate::metrics::MetricsEvent;
use crate::registry::Registry;

/// Maximum number of characters of an unknown agent id in an error message.
const MAX_SHOWN_ID_CHARS: usize = 40;

/// Handles a call: runs it, counts it, and writes its audit line.
///
/// # Errors
/// The call failed: the error object for the answer.
pub(crate) async fn handle(
    daemon: &DaemonState,
    peer: Peer,
    call: Call,
) -> Result<RawResult, RpcError> {
    let started = Instant::now();
    let result = dispatch(daemon, peer, call.clone()).await;
    let result = result.map_err(|error| error.to_rpc_error());
    daemon.registry.observers.record(MetricsEvent::Request {
        method: call.method(),
        took: started.elapsed(),
        error: result.as_ref().err(),
    });
    let spawned: Option<SpawnResult> = match (&call, &result) {
        (Call::SpawnAgent(_), Ok(result)) => serde_json::from_str(result.get()).ok(),
        _ => None,
    };
    let id = spawned.as_ref().map(|spawned| spawned.id.as_str());
    let outcome = match &result {
        Ok(_) => "ok",
        Err(error) => &error.message,
    };
    daemon.audit(peer, &call, id, outcome).await;
    result
}

async fn dispatch(daemon: &DaemonState, peer: Peer, call: Call) -> Result<RawResult, CallError> {
    let registry = &daemon.registry;
    match call {
        Call::Version(Empty {}) => to_result(&admin::version()),
        Call::SpawnAgent(params) => to_result(&spawn::spawn(daemon, params).await?),
        Call::ExplainSpawn(params) => to_result(&spawn::explain(daemon, params).await?),
        Call::RestartAgent(params) => to_result(&spawn::restart(daemon, params).await?),
        Call::ListAgents(params) => agents::list(registry, &params),
        Call::GetAgent(IdParams { id }) => to_result(&find_agent(registry, &id)?.to_wire()),
        Call::WaitAgent(IdParams { id }) => to_result(&agents::wait(registry, &id).await?),
        Call::ListRuns(IdParams { id }) => to_result(&agents::list_runs(registry, &id).await?),
        Call::RemoveAgent(IdParams { id }) => {
            let agent = find_agent(registry, &id)?;
            registry.remove(&agent.spec.id).await?;
            to_result(&Empty {})
        }
        Call::GetUsage(params) => to_result(&usage::measure(registry, params).await?),
        Call::KillAgent(params) => to_result(&control::kill(registry, peer, params).await?),
        Call::SendInput(params) => to_result(&control::send_input(registry, params).await?),
        Call::CloseInput(IdParams { id }) => to_result(&control::close_input(registry, &id).await?),
        Call::ReadJournal(params) => to_result(&agents::read_journal(registry, params).await?),
        Call::Doctor(Empty {}) => to_result(&admin::doctor(daemon).await),
        Call::ListProfiles(Empty {}) => to_result(&daemon.config.profiles()),
        Call::ReloadConfig(Empty {}) => to_result(&daemon.reload().await?),
        Call::Shutdown(Empty {}) => {
            daemon.shutdown.send_replace(true);
            to_result(&Empty {})
        }
        Call::Subscribe(_) | Call::Unsubscribe(_) | Call::ResizeTerminal(_) => Err(CallError::new(
            ErrorKind::Internal,
            "subscriptions belong to their connection",
        )),
    }
}

/// Encodes a result.
///
/// # Errors
/// The result cannot be written as JSON.
pub(crate) fn to_result<T: Serialize>(result: &T) -> Result<RawResult, CallError> {
    serde_json::value::to_raw_value(result).map_err(CallError::internal("encode the result"))
}

/// Returns the agent with an id.
///
/// # Errors
/// No agent has the id.
pub(crate) fn find_agent(registry: &Registry, id: &str) -> Result<Arc<RegisteredAgent>, CallError> {
    let found = id.parse::<AgentId>().ok().and_then(|id| registry.get(&id));
    found.ok_or_else(|| {
        let shown: String = id.chars().take(MAX_SHOWN_ID_CHARS).collect();
        RpcError::new(
            ErrorKind::UnknownAgent,
            format!("no agent with ID {shown:?}"),
        )
        .hint("list-agents (colibri ps) shows all agents")
        .into()
    })
}
