//! `kill-agent`, `send-input` and `close-input`.

use std::time::Duration;

use colibri_jail_core::Signal;
use colibri_proto::{
    Empty, ErrorKind, InputParams, InputResult, KillOutcome, KillParams, KillResult, RpcError,
};
use colibri_spawner::{AgentHandle, SpawnError};

use super::find_agent;
use crate::agent::KillRequest;
use crate::daemon::audit::Peer;
use crate::errors::CallError;
use crate::metrics::MetricsEvent;
use crate::registry::Registry;
use crate::times;

/// Default time between the first signal and KILL.
const DEFAULT_GRACE: Duration = Duration::from_secs(5);
/// Maximum time that the answer to a kill waits until the agent's end is in the registry.
const END_RECORDED_TIMEOUT: Duration = Duration::from_secs(2);

/// Returns the grace period of a request.
pub(super) fn grace(grace_ms: Option<u64>) -> Duration {
    grace_ms.map_or(DEFAULT_GRACE, Duration::from_millis)
}

pub(super) async fn kill(
    registry: &Registry,
    peer: Peer,
    params: KillParams,
) -> Result<KillResult, CallError> {
    let outcome = kill_agent(registry, peer, params).await;
    let counted = outcome.as_ref().copied();
    registry.observers.record(MetricsEvent::Kill(
        counted.map_err(|error| error.to_rpc_error().data.kind),
    ));
    Ok(KillResult {
        outcome: outcome?,
        remaining_pids: Vec::new(),
    })
}

async fn kill_agent(
    registry: &Registry,
    peer: Peer,
    params: KillParams,
) -> Result<KillOutcome, CallError> {
    let signal: Signal = match params.signal.as_deref() {
        None => Signal::TERM,
        Some(name) => name.parse().map_err(CallError::invalid_params)?,
    };
    let found = find_agent(registry, &params.id)?;
    let Some(agent) = found.running() else {
        if found.latest.borrow().waiting.is_some() {
            registry.end_resume_wait(&params.id).await;
        }
        return Ok(KillOutcome::AlreadyExited);
    };
    found.latest.send_modify(|latest| {
        let earlier = latest.kill.as_ref().map_or(0, |kill| kill.number);
        latest.kill = Some(KillRequest {
            number: earlier + 1,
            signal: signal.name().to_owned(),
            escalate: params.escalate,
            uid: peer.uid,
            at_ms: times::now_ms(),
        });
    });
    let spawner = registry.spawner();
    let report = if params.escalate {
        spawner.kill(agent, signal, grace(params.grace_ms)).await
    } else if params.no_restart {
        spawner.signal_last(agent, signal).await
    } else {
        spawner.signal(agent, signal).await
    };
    let outcome = report?;
    if outcome != KillOutcome::Signalled {
        let mut latest = found.latest.subscribe();
        let ended = latest.wait_for(|latest| latest.exit.is_some());
        let _ = tokio::time::timeout(END_RECORDED_TIMEOUT, ended).await;
    }
    Ok(outcome)
}

pub(super) async fn send_input(
    registry: &Registry,
    params: InputParams,
) -> Result<InputResult, CallError> {
    let agent = find_running(registry, &params.id)?;
    let bytes = params
        .data
        .into_bytes()
        .map_err(CallError::invalid_params)?;
    match agent.shim.input(&bytes).await.map_err(SpawnError::from)? {
        Some(written) => Ok(InputResult {
            written: written as u64,
        }),
        None => Err(CallError::new(
            ErrorKind::InputClosed,
            format!("cannot write to agent {}: its stdin is closed", params.id),
        )),
    }
}

pub(super) async fn close_input(registry: &Registry, id: &str) -> Result<Empty, CallError> {
    let agent = find_running(registry, id)?;
    if agent.spec.config.terminal.is_some() {
        return Err(RpcError::new(
            ErrorKind::HasTerminal,
            format!(
                "cannot close the input of agent {id}: it has a terminal, whose input has no end"
            ),
        )
        .hint("send it the end-of-file character, ctrl-d")
        .into());
    }
    let closed = agent.shim.close_input().await;
    closed.map_err(SpawnError::from)?;
    Ok(Empty {})
}

fn find_running(registry: &Registry, id: &str) -> Result<AgentHandle, CallError> {
    let running = find_agent(registry, id)?.running().cloned();
    Ok(running.ok_or_else(|| SpawnError::Ended(id.to_owned()))?)
}
