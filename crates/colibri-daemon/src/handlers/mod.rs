//! What each method does, and how its failures are told.

mod usage;

use std::sync::Arc;
use std::time::{Duration, Instant};

use colibri_config::ProfileError;
use colibri_jail_core::Signal;
use colibri_journal::JournalError;
use colibri_prepare::{Installation, PrepareError};
use colibri_priv::PrivError;
use colibri_proto::{
    Answer, Call, DoctorResult, Empty, ErrorKind, ExplainResult, IdParams, InputParams,
    InputResult, KillOutcome, KillParams, KillResult, ListParams, MAX_READ, OutputData, ReadParams,
    ReadResult, RestartAgentParams, RestartResult, RpcError, Run, RunsResult, SpawnResult,
    VersionResult,
};
use colibri_shim::layout;
use colibri_shim::record::{RunRecord, read_lines};
use colibri_spawner::{AgentId, LinkError, SpawnError, StateDir};
use colibri_types::SpawnConfigError;
use serde::Serialize;

use crate::connection::bytes_at;
use crate::connection::server::Server;
use crate::daemon::audit::Peer;
use crate::daemon::config::Secrets;
use crate::registry::{Entry, Kill, Registry, valid_name};
use crate::{pool, times};

const GRACE: Duration = Duration::from_secs(5);
/// Behind a kill the agent's end is recorded in a moment; so long its answer waits for that.
const RECORDED: Duration = Duration::from_secs(2);
/// Runs in one answer: each takes at most some hundred bytes of a frame.
const MAX_RUNS: usize = 1000;
/// Maximum number of bytes read of the file of runs; a record takes some hundred.
const MAX_RUNS_BYTES: u64 = 1 << 20;
/// Agents that are looked for at once: a page that is full has not walked all that come behind it.
const AT_ONCE: usize = 256;
/// A page of agents stays well below a frame.
const PAGE_BYTES: usize = 768 * 1024;

/// Does what is asked and writes the audit line.
pub(crate) async fn perform(
    server: &Server,
    peer: Peer,
    method: &'static str,
    call: Call,
) -> Result<Answer, RpcError> {
    let asked = Instant::now();
    let outcome = dispatch(server, peer, call.clone()).await;
    if let Some(metrics) = &server.registry.observers.metrics {
        metrics.answered(method, asked.elapsed(), outcome.as_ref().err());
    }
    let made = match (&call, &outcome) {
        (Call::SpawnAgent(_), Ok(result)) => serde_json::from_str(result.get()).ok(),
        _ => None,
    };
    let made = made.as_ref().map(|SpawnResult { id, .. }| id.as_str());
    match &outcome {
        Ok(_) => server.audit.record(peer, &call, made, "ok").await,
        Err(error) => {
            let outcome = &error.message;
            server.audit.record(peer, &call, None, outcome).await;
        }
    }
    outcome
}

async fn dispatch(server: &Server, peer: Peer, call: Call) -> Result<Answer, RpcError> {
    let registry = &server.registry;
    match call {
        Call::Version(Empty {}) => reply(&VersionResult {
            name: "colibri-daemon".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: 1,
        }),
        Call::SpawnAgent(params) => {
            if *server.ending.borrow() {
                return Err(RpcError::new(
                    ErrorKind::ShuttingDown,
                    "the daemon ends; no agent was started",
                ));
            }
            let config = server
                .config
                .over_profile(params, Secrets::Wanted)
                .await
                .map_err(|error| error.to_rpc_error())?;
            let entry = registry
                .spawn(&config)
                .await
                .map_err(|error| tell(&error))?;
            reply(&SpawnResult {
                id: entry.spec.id.to_string(),
                warnings: entry.spec.warnings.clone(),
            })
        }
        Call::ExplainSpawn(params) => {
            let config = server
                .config
                .over_profile(params, Secrets::Unwanted)
                .await
                .map_err(|error| error.to_rpc_error())?;
            valid_name(&config).map_err(|error| tell(&error))?;
            let prepared = registry
                .spawner
                .explain(&config)
                .await
                .map_err(|error| tell(&error))?;
            let (program, args) = prepared.command.into_parts();
            reply(&ExplainResult {
                program,
                args,
                engine: prepared.engine,
                privilege: prepared.privilege,
            })
        }
        Call::ListAgents(params) => list(registry, &params),
        Call::GetAgent(IdParams { id }) => reply(&find(registry, &id)?.to_wire()),
        Call::WaitAgent(IdParams { id }) => {
            let entry = find(registry, &id)?;
            let mut latest = entry.latest.subscribe();
            let _ = latest.wait_for(|latest| latest.exit.is_some()).await;
            reply(&entry.to_wire())
        }
        Call::ListRuns(IdParams { id }) => {
            let entry = find(registry, &id)?;
            let runs = pool::short(move || runs(&entry)).await.map_err(ending)?;
            reply(&runs?)
        }
        Call::GetUsage(params) => usage::measure(registry, params).await,
        Call::RemoveAgent(IdParams { id }) => {
            let entry = find(registry, &id)?;
            registry
                .remove(&entry.spec.id)
                .await
                .map_err(|error| tell(&error))?;
            reply(&Empty {})
        }
        Call::KillAgent(params) => {
            let outcome = kill(registry, peer, params).await;
            if let Some(metrics) = &registry.observers.metrics {
                metrics.killed(outcome.clone().map_err(|error| error.data.kind));
            }
            done(outcome?)
        }
        Call::SendInput(params) => input(registry, params).await,
        Call::CloseInput(IdParams { id }) => {
            let entry = running(registry, &id)?;
            if let Some(agent) = &entry.agent {
                agent
                    .link
                    .close_input()
                    .await
                    .map_err(|error| tell(&error.into()))?;
            }
            reply(&Empty {})
        }
        Call::ReadJournal(params) => {
            let entry = find(registry, &params.id)?;
            pool::short(move || read(&entry, &params))
                .await
                .map_err(ending)?
        }
        Call::RestartAgent(params) => restart(server, params).await,
        Call::Doctor(Empty {}) => {
            let spawner = registry.spawner_now();
            let installation = Installation {
                shim: spawner.shim.clone(),
                state_dir: spawner.state.path().to_owned(),
                socket: server.socket.clone(),
            };
            let mut findings = spawner.preparer.preflight(&installation).await;
            let removed = pool::short(move || removed_state(&spawner.state)).await;
            findings.extend(removed.ok().flatten());
            findings.extend(server.config.findings());
            reply(&DoctorResult { findings })
        }
        Call::ListProfiles(Empty {}) => reply(&server.config.profiles()),
        Call::ReloadConfig(Empty {}) => reply(&server.reload().await?),
        Call::Shutdown(Empty {}) => {
            server.ending.send_replace(true);
            reply(&Empty {})
        }
        // They are the connection's own.
        Call::Subscribe(_) | Call::Unsubscribe(_) => Err(RpcError::new(
            ErrorKind::Internal,
            "subscriptions are not handled here",
        )),
    }
}

/// A result as JSON text.
pub(crate) fn reply<T: Serialize>(result: &T) -> Result<Answer, RpcError> {
    serde_json::value::to_raw_value(result).map_err(|error| {
        RpcError::new(
            ErrorKind::Internal,
            format!("result cannot be written: {error}"),
        )
    })
}

/// Returns the error for a call that the daemon cannot answer because it is shutting down.
fn ending(error: std::io::Error) -> RpcError {
    RpcError::new(
        ErrorKind::ShuttingDown,
        format!("the daemon is shutting down: {error}; start it and try again"),
    )
}

/// The agent of that id.
pub(crate) fn find(registry: &Registry, id: &str) -> Result<Arc<Entry>, RpcError> {
    let unknown = || {
        let shown: String = id.chars().take(40).collect();
        RpcError::new(
            ErrorKind::UnknownAgent,
            format!("there is no agent {shown:?}"),
        )
        .hint("list-agents (colibri ps) shows all agents")
    };
    let id: AgentId = id.parse().map_err(|_| unknown())?;
    registry.get(&id).ok_or_else(unknown)
}

fn running(registry: &Registry, id: &str) -> Result<Arc<Entry>, RpcError> {
    let entry = find(registry, id)?;
    if entry.latest.borrow().exit.is_some() {
        return Err(tell(&SpawnError::Ended(id.to_owned())));
    }
    Ok(entry)
}

fn runs(entry: &Entry) -> Result<RunsResult, RpcError> {
    let path = entry.directory.join(layout::RUNS);
    let records: Vec<RunRecord> = read_lines(&path, MAX_RUNS_BYTES).map_err(|error| {
        RpcError::new(
            ErrorKind::Internal,
            format!("{} cannot be read: {error}", path.display()),
        )
    })?;
    let old = records.len().saturating_sub(MAX_RUNS);
    let runs = records.into_iter().skip(old).map(|record| Run {
        run: record.run,
        started_at: times::from_ns(record.started_at_ns),
        exited_at: times::from_ns(record.exited_at_ns),
        exit: Some(record.exit()),
        error: record.error,
        stdout: record.stdout,
        stderr: record.stderr,
    });
    Ok(RunsResult {
        runs: runs.collect(),
    })
}

/// Returns the finding of `doctor` for a state directory that was removed while the daemon runs.
fn removed_state(state: &StateDir) -> Option<colibri_priv::Finding> {
    let fail = || {
        colibri_priv::Finding::fail(
            format!(
                "state directory {} was removed while the daemon runs: no agent can be started, and what ended agents wrote is lost",
                state.path().display()
            ),
            "restart the daemon, which creates it again: colibri shutdown, then any command starts it",
        )
    };
    state.is_removed().then(fail)
}

/// A page, each agent of it written once: its length counts, and it is the answer. Reads as
/// [`colibri_proto::ListResult`].
#[derive(Serialize)]
struct Page {
    agents: Vec<Answer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

fn list(registry: &Registry, params: &ListParams) -> Result<Answer, RpcError> {
    let mut after = params
        .after
        .as_ref()
        .map(|after| after.parse::<AgentId>())
        .transpose()
        .map_err(|error| RpcError::new(ErrorKind::InvalidParams, format!("after: {error}")))?;
    let limit = params.limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    });
    let mut page = Page {
        agents: Vec::new(),
        next: None,
    };
    let mut bytes = 0;
    loop {
        let some = registry.list(after.as_ref(), params.running, AT_ONCE);
        let last = some.len() < AT_ONCE;
        for entry in some {
            let agent = reply(&entry.to_wire())?;
            bytes += agent.get().len();
            if !page.agents.is_empty() && (bytes > PAGE_BYTES || page.agents.len() >= limit) {
                page.next = after.map(|id| id.to_string());
                return reply(&page);
            }
            page.agents.push(agent);
            after = Some(entry.spec.id.clone());
        }
        if last {
            return reply(&page);
        }
    }
}

/// Ends the current run of a running agent, whose shim then starts the next one immediately; spawns an ended agent
/// again.
async fn restart(server: &Server, params: RestartAgentParams) -> Result<Answer, RpcError> {
    let registry = &server.registry;
    let entry = find(registry, &params.id)?;
    let running = entry.agent.as_ref();
    if let Some(agent) = running.filter(|_| entry.latest.borrow().exit.is_none()) {
        let grace = params.grace_ms.map_or(GRACE, Duration::from_millis);
        let restarted = registry.spawner.restart(agent, grace).await;
        restarted.map_err(|error| tell(&error))?;
        return reply(&RestartResult { id: params.id });
    }
    if *server.ending.borrow() {
        return Err(RpcError::new(
            ErrorKind::ShuttingDown,
            "the daemon is shutting down; no agent was started",
        ));
    }
    let config = entry.spec.config.clone();
    if !config.env.is_empty() {
        let variables: Vec<String> = config.env.into_keys().collect();
        return Err(tell(&SpawnError::EnvironmentNotKept {
            id: params.id,
            variables,
        }));
    }
    let entry = registry
        .spawn(&config)
        .await
        .map_err(|error| tell(&error))?;
    reply(&RestartResult {
        id: entry.spec.id.to_string(),
    })
}

async fn kill(
    registry: &Registry,
    peer: Peer,
    params: KillParams,
) -> Result<KillOutcome, RpcError> {
    let signal: Signal = match params.signal.as_deref() {
        None => Signal::TERM,
        Some(name) => name
            .parse()
            .map_err(|error| RpcError::new(ErrorKind::InvalidParams, format!("signal: {error}")))?,
    };
    let entry = find(registry, &params.id)?;
    let Some(agent) = entry
        .agent
        .as_ref()
        .filter(|_| entry.latest.borrow().exit.is_none())
    else {
        return Ok(KillOutcome::AlreadyExited);
    };
    entry.latest.send_modify(|latest| {
        let before = latest.kill.as_ref().map_or(0, |kill| kill.number);
        latest.kill = Some(Kill {
            number: before + 1,
            signal: signal.name().to_owned(),
            escalate: params.escalate,
            uid: peer.uid,
            at_ms: times::now_ms(),
        });
    });
    let spawner = &registry.spawner;
    let report = if params.escalate {
        let grace = params.grace_ms.map_or(GRACE, Duration::from_millis);
        spawner.kill(agent, signal, grace).await
    } else if params.no_restart {
        spawner.signal_last(agent, signal).await
    } else {
        spawner.signal(agent, signal).await
    };
    let outcome = report.map_err(|error| tell(&error))?.outcome;
    if outcome != KillOutcome::Signalled {
        let mut latest = entry.latest.subscribe();
        let _ =
            tokio::time::timeout(RECORDED, latest.wait_for(|latest| latest.exit.is_some())).await;
    }
    Ok(outcome)
}

fn done(outcome: KillOutcome) -> Result<Answer, RpcError> {
    reply(&KillResult {
        outcome,
        remaining_pids: Vec::new(),
    })
}

async fn input(registry: &Registry, params: InputParams) -> Result<Answer, RpcError> {
    let entry = running(registry, &params.id)?;
    let bytes = params
        .data
        .into_bytes()
        .map_err(|error| RpcError::new(ErrorKind::InvalidParams, error.to_string()))?;
    let Some(agent) = &entry.agent else {
        return Err(tell(&SpawnError::Ended(params.id)));
    };
    match agent
        .link
        .input(&bytes)
        .await
        .map_err(|error| tell(&error.into()))?
    {
        Some(written) => reply(&InputResult {
            written: written as u64,
        }),
        None => Err(RpcError::new(
            ErrorKind::InputClosed,
            format!("the stdin of agent {} is closed", params.id),
        )),
    }
}

fn read(entry: &Entry, params: &ReadParams) -> Result<Answer, RpcError> {
    let mut journal = entry.journal(params.stream);
    let ended = entry.latest.borrow().exit.is_some();
    let offset = match &params.since {
        None => params.offset,
        Some(since) => {
            let at = times::to_ns(since).map_err(|error| {
                RpcError::new(ErrorKind::InvalidParams, format!("since: {error}"))
            })?;
            journal
                .offset_at(at)
                .map_err(|error| tell_journal(&error))?
        }
    };
    let chunk = journal
        .chunk_at(offset)
        .map_err(|error| tell_journal(&error))?;
    // What comes after this look is for the next call: its time is not known here.
    let there = match &chunk {
        Some(chunk) if params.timed => chunk.end.saturating_sub(offset),
        Some(_) => MAX_READ,
        None => 0,
    };
    let bytes = bytes_at(&mut journal, offset, params.limit.min(MAX_READ).min(there))
        .map_err(|error| tell_journal(&error))?;
    let next_offset = offset + bytes.len() as u64;
    let end = ended && next_offset == journal.end_offset().map_err(|error| tell_journal(&error))?;
    let data = OutputData::from(bytes);
    reply(&ReadResult {
        offset,
        next_offset,
        data,
        end,
        time: chunk.map(|chunk| times::from_ns(chunk.at_ns)),
    })
}

fn tell_journal(error: &JournalError) -> RpcError {
    let kind = match error {
        JournalError::BelowOldest { .. } => ErrorKind::OffsetBelowOldest,
        JournalError::BeyondEnd { .. } => ErrorKind::OffsetBeyondEnd,
        _ => ErrorKind::Internal,
    };
    let mut told = RpcError::new(kind, error.to_string());
    if let JournalError::BelowOldest { oldest, .. } = error {
        told.data.oldest_offset = Some(*oldest);
    }
    told
}

/// Why a request for an agent failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// Its profile cannot be used.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// It cannot be spawned.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
}

impl RequestError {
    pub(crate) fn to_rpc_error(&self) -> RpcError {
        match self {
            Self::Spawn(error) => tell(error),
            Self::Profile(error) => {
                let kind = match error {
                    ProfileError::Unknown { .. } => ErrorKind::UnknownProfile,
                    ProfileError::EnvFile(_) => ErrorKind::InvalidConfig,
                    _ => ErrorKind::InvalidParams,
                };
                RpcError::new(kind, error.to_string())
            }
        }
    }
}

/// Returns the kind of an error of the preparation.
fn prepare_error_kind(error: &PrepareError) -> ErrorKind {
    match error {
        PrepareError::Config(SpawnConfigError::Jail(_))
        | PrepareError::Jail(_)
        | PrepareError::UnknownUser { .. }
        | PrepareError::Privilege(PrivError::Jail(_)) => ErrorKind::InvalidJail,
        PrepareError::Config(_) | PrepareError::Command(_) => ErrorKind::InvalidParams,
        PrepareError::Privilege(_) => ErrorKind::Privilege,
        PrepareError::ProgramNotFound { .. } => ErrorKind::ProgramNotFound,
        PrepareError::ProgramNotExecutable { .. } => ErrorKind::ProgramNotExecutable,
        PrepareError::Path { .. } => ErrorKind::PathNotFound,
        PrepareError::WrapperMissing(_) => ErrorKind::EngineMissing,
        _ => ErrorKind::Internal,
    }
}

/// The kind of an error.
pub(crate) fn kind(error: &SpawnError) -> ErrorKind {
    match error {
        SpawnError::Id(_) => ErrorKind::UnknownAgent,
        SpawnError::Prepare(error) => prepare_error_kind(error),
        SpawnError::Name { .. } => ErrorKind::InvalidParams,
        SpawnError::Launch { .. } | SpawnError::Shim { .. } => ErrorKind::SpawnFailed,
        SpawnError::Resources { .. } => ErrorKind::ResourceExhausted,
        SpawnError::Link(LinkError::Silent(_)) => ErrorKind::AgentSilent,
        SpawnError::PrivilegedCommand { .. } => ErrorKind::Privilege,
        SpawnError::Ended(_) | SpawnError::Link(LinkError::Gone) => ErrorKind::AgentEnded,
        SpawnError::Running(_) => ErrorKind::AgentRunning,
        SpawnError::KillUnverified { .. } => ErrorKind::KillUnverified,
        SpawnError::NameInUse { .. } | SpawnError::AutostartInUse { .. } => ErrorKind::NameInUse,
        SpawnError::EnvironmentNotKept { .. } => ErrorKind::EnvironmentNotKept,
        _ => ErrorKind::Internal,
    }
}

/// As the wire has it; the message says the rest.
pub(crate) fn tell(error: &SpawnError) -> RpcError {
    let mut told = RpcError::new(kind(error), error.to_string());
    if let SpawnError::KillUnverified { remaining, .. } = error {
        told.data.remaining_pids = Some(remaining.clone());
    }
    told
}
