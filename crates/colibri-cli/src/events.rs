//! `colibri events`: a line for each thing that happens to agents, for people or as JSON.

use std::collections::{BTreeMap, BTreeSet};

use colibri_client::{
    Agent, AgentRuntime, AgentState, Client, ClientError, Endpoint, Exit, ExitReason, ExitStatus,
    MAX_READ, Notification, OutputData, ReadParams, Stream, StreamChoice, SubscribeParams,
};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::args::{Events, Global};
use crate::connect::{endpoint, find};
use crate::error::CliError;
use crate::output;
use crate::sink::until_unread;

/// Events that wait here for a slow reader; the others wait in the daemon.
const WAITING: usize = 16;

/// A line. The fields are documented in colibri(1).
#[derive(Debug, Serialize)]
struct Line {
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(flatten)]
    what: What,
}

#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum What {
    Spawned {
        program: String,
        runtime: AgentRuntime,
    },
    State {
        state: AgentState,
        previous_state: Option<AgentState>,
        #[serde(skip_serializing_if = "is_zero")]
        merged: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        current_tool: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    Run {
        run: u32,
        #[serde(skip_serializing_if = "is_zero")]
        merged: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    Kill {
        signal: String,
        escalate: bool,
        uid: u32,
        #[serde(skip_serializing_if = "is_zero")]
        merged: u64,
    },
    Exit {
        state: AgentState,
        exit_code: Option<i32>,
        exit_signal: Option<i32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<ExitReason>,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    Output {
        stream: Stream,
        offset: u64,
        #[serde(flatten)]
        data: OutputData,
    },
    Removed {},
    Gap {
        reason: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        missed: Option<u64>,
    },
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

fn now() -> String {
    format!("{:.3}", jiff::Timestamp::now())
}

/// Why following stopped.
enum Stopped {
    /// All agents that were named have ended.
    Ended,
    /// Nobody reads the lines.
    Unread,
    /// The daemon went.
    Lost,
}

/// What is known over the life of several daemons.
#[derive(Default)]
struct Known {
    names: BTreeMap<String, String>,
    /// Agents that run, as far as it was told.
    running: BTreeSet<String>,
    /// Offset of the next byte of each output, by agent, for agents that have not ended and whose output is printed.
    places: BTreeMap<String, [u64; 2]>,
}

impl Known {
    fn place(&mut self, id: &str, stream: Stream) -> &mut u64 {
        let [stdout, stderr] = self.places.entry(id.to_owned()).or_default();
        match stream {
            Stream::Stdout => stdout,
            Stream::Stderr => stderr,
        }
    }
}

/// Prints events until all named agents have ended or the reader has closed stdout. When the daemon ends, continues
/// with the next one; see [`Endpoint::reconnect`].
pub(crate) async fn events(global: &Global, wanted: Events) -> Result<u8, CliError> {
    let endpoint = endpoint(global)?;
    let mut client = endpoint.connect_or_start(output::link).await?;
    let mut ids = Vec::new();
    for id in &wanted.ids {
        ids.push(find(&client, id).await?.id);
    }
    ids.sort();
    ids.dedup();
    let mut known = Known::default();
    let mut first = true;
    let mut unread = until_unread()?;
    loop {
        let stopped = match follow(&client, &wanted, &mut ids, &mut known, first, &mut unread).await
        {
            Err(CliError::Client(error)) if error.is_lost_connection() => Stopped::Lost,
            other => other?,
        };
        match stopped {
            Stopped::Ended | Stopped::Unread => return Ok(0),
            Stopped::Lost => {}
        }
        let gap = What::Gap {
            reason: "the daemon has gone; what happens until the next one is there is not told"
                .into(),
            missed: None,
        };
        let gap = Line {
            time: now(),
            id: None,
            name: None,
            what: gap,
        };
        if !print(&wanted, gap)? {
            return Ok(0);
        }
        first = false;
        client = match reconnect(&endpoint, &mut unread).await? {
            Some(client) => client,
            None => return Ok(0),
        };
    }
}

/// Connects to the next daemon; returns `None` if the reader has closed stdout.
async fn reconnect(
    endpoint: &Endpoint,
    unread: &mut oneshot::Receiver<()>,
) -> Result<Option<Client>, CliError> {
    tokio::select! {
        client = endpoint.reconnect(output::link) => Ok(Some(client?)),
        _ = unread => Ok(None),
    }
}

/// Follows one daemon. `ids` loses those that have ended.
async fn follow(
    client: &Client,
    wanted: &Events,
    ids: &mut Vec<String>,
    known: &mut Known,
    first: bool,
    unread: &mut oneshot::Receiver<()>,
) -> Result<Stopped, CliError> {
    let one = !ids.is_empty();
    let (sender, mut events) = mpsc::channel(WAITING);
    let subscriptions = match one {
        true => ids.iter().cloned().map(Some).collect(),
        false => vec![None],
    };
    for id in subscriptions {
        // Named agents are followed from their first byte, and after a reconnect from the offset reached before.
        let place = |known: &mut Known, stream| {
            let id = id.as_deref().filter(|_| wanted.output)?;
            Some(*known.place(id, stream))
        };
        let params = SubscribeParams {
            id: id.clone(),
            stream: (!wanted.output).then_some(StreamChoice::None),
            from_offset: place(known, Stream::Stdout),
            stderr_from_offset: place(known, Stream::Stderr),
            timed: wanted.output,
            lifecycle: true,
        };
        let mut events = match client.subscribe(params).await {
            // It was removed while no daemon was there; the list says so below.
            Err(ClientError::Rpc(_)) if !first => continue,
            other => other?,
        };
        let sender = sender.clone();
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                if sender.send(event).await.is_err() {
                    return;
                }
            }
        });
    }
    drop(sender);
    // After the subscriptions, so that whoever is not in the list is told of.
    let there = client.list_agents().await?;
    for agent in &there {
        if let Some(name) = &agent.name {
            known.names.insert(agent.id.clone(), name.clone());
        }
    }
    if wanted.output && !one && !first && !catch_up(client, wanted, &there, known).await? {
        return Ok(Stopped::Unread);
    }
    for line in meanwhile(known, &there, one.then_some(&*ids)) {
        if one {
            ids.retain(|id| line.id.as_ref() != Some(id));
        }
        if !print(wanted, line)? {
            return Ok(Stopped::Unread);
        }
    }
    loop {
        if one && ids.is_empty() {
            return Ok(Stopped::Ended);
        }
        let event = tokio::select! {
            event = events.recv() => event,
            // Without this a reader that has gone would be noticed with the next event only.
            _ = &mut *unread => return Ok(Stopped::Unread),
        };
        let Some(event) = event else {
            return Ok(Stopped::Lost);
        };
        let Some(line) = line(event, known) else {
            continue;
        };
        if let (What::Exit { .. }, Some(id)) = (&line.what, &line.id) {
            ids.retain(|other| other != id);
        }
        if !print(wanted, line)? {
            return Ok(Stopped::Unread);
        }
    }
}

/// Prints the output that followed agents wrote while no daemon ran; returns `false` if the reader has closed stdout.
async fn catch_up(
    client: &Client,
    wanted: &Events,
    there: &[Agent],
    known: &mut Known,
) -> Result<bool, CliError> {
    for agent in there {
        if !known.places.contains_key(&agent.id) {
            continue;
        }
        for (stream, end) in [
            (Stream::Stdout, agent.stdout_bytes),
            (Stream::Stderr, agent.stderr_bytes),
        ] {
            while *known.place(&agent.id, stream) < end {
                let params = ReadParams {
                    id: agent.id.clone(),
                    stream,
                    offset: *known.place(&agent.id, stream),
                    limit: MAX_READ,
                    since: None,
                    timed: true,
                };
                let read = match client.read_journal(params).await {
                    // Retention has dropped these bytes: the offset of the next line shows the gap.
                    Err(ClientError::Rpc(error)) => {
                        *known.place(&agent.id, stream) = error.data.oldest_offset.unwrap_or(end);
                        continue;
                    }
                    other => other?,
                };
                if read.next_offset == read.offset {
                    break;
                }
                *known.place(&agent.id, stream) = read.next_offset;
                let line = Line {
                    time: read.time.unwrap_or_else(now),
                    id: Some(agent.id.clone()),
                    name: agent.name.clone(),
                    what: What::Output {
                        stream,
                        offset: read.offset,
                        data: read.data,
                    },
                };
                if !print(wanted, line)? {
                    return Ok(false);
                }
            }
        }
    }
    Ok(true)
}

/// What became of agents while no daemon was there: those that ran have ended, or are gone.
fn meanwhile(known: &mut Known, there: &[Agent], ids: Option<&[String]>) -> Vec<Line> {
    let mut lines = Vec::new();
    let there: BTreeMap<&str, &Agent> = there.iter().map(|agent| (&*agent.id, agent)).collect();
    for id in std::mem::take(&mut known.running) {
        let what = match there.get(&*id) {
            None => What::Removed {},
            // Those that were named are followed to their end, whenever that was.
            Some(agent) if agent.exited_at.is_some() && ids.is_none() => {
                exit(agent.state, agent.exit, agent.error.clone())
            }
            Some(_) => {
                known.running.insert(id);
                continue;
            }
        };
        let time = there.get(&*id).and_then(|agent| agent.exited_at.clone());
        lines.push(Line {
            time: time.unwrap_or_else(now),
            name: known.names.get(&id).cloned(),
            id: Some(id),
            what,
        });
    }
    lines
}

fn exit(state: AgentState, exit: Option<Exit>, error: Option<String>) -> What {
    What::Exit {
        state,
        exit_code: exit.and_then(Exit::code),
        exit_signal: exit.and_then(Exit::signal),
        reason: exit.map(|exit| exit.reason),
        error,
    }
}

/// Returns the line for an event; `None` for output that was already printed.
fn line(event: Notification, known: &mut Known) -> Option<Line> {
    let (time, id, what) = match event {
        Notification::AgentSpawned(event) => {
            if let Some(name) = event.name {
                known.names.insert(event.id.clone(), name);
            }
            let what = What::Spawned {
                program: event.program,
                runtime: event.runtime,
            };
            (event.started_at, event.id, what)
        }
        Notification::AgentState(event) => {
            let what = What::State {
                state: event.state,
                previous_state: event.previous,
                merged: event.merged,
                current_tool: event.current_tool,
                error: event.last_error,
            };
            known.running.insert(event.id.clone());
            (event.since, event.id, what)
        }
        Notification::AgentRun(event) => {
            let what = What::Run {
                run: event.run,
                merged: event.merged,
                error: event.error,
            };
            (event.at, event.id, what)
        }
        Notification::AgentKill(event) => {
            let what = What::Kill {
                signal: event.signal,
                escalate: event.escalate,
                uid: event.uid,
                merged: event.merged,
            };
            (event.at, event.id, what)
        }
        Notification::AgentExit(event) => {
            known.running.remove(&event.id);
            known.places.remove(&event.id);
            let what = exit(event.state, event.exit, event.error);
            (event.exited_at, event.id, what)
        }
        Notification::AgentOutput(event) => {
            let mut event = event;
            let place = known.place(&event.id, event.stream);
            let printed = place.saturating_sub(event.offset);
            if let (1.., Ok(bytes)) = (printed, event.data.clone().into_bytes()) {
                let printed = usize::try_from(printed).unwrap_or(usize::MAX);
                let rest = bytes.get(printed..).filter(|rest| !rest.is_empty())?;
                event.offset += printed as u64;
                event.data = OutputData::from_bytes(rest);
            }
            let length = event
                .data
                .clone()
                .into_bytes()
                .map_or(0, |bytes| bytes.len());
            *place = event.offset + length as u64;
            let what = What::Output {
                stream: event.stream,
                offset: event.offset,
                data: event.data,
            };
            (event.time.unwrap_or_else(now), event.id, what)
        }
        Notification::AgentRemoved(event) => {
            known.running.remove(&event.id);
            known.places.remove(&event.id);
            (now(), event.id, What::Removed {})
        }
        Notification::AgentsMissed(event) => {
            let reason = "agents were started, ended and removed faster than they were looked at";
            let what = What::Gap {
                reason: reason.to_owned(),
                missed: Some(event.agents),
            };
            return Some(Line {
                time: now(),
                id: None,
                name: None,
                what,
            });
        }
    };
    Some(Line {
        time,
        name: known.names.get(&id).cloned(),
        id: Some(id),
        what,
    })
}

/// Prints a line at once; `false` where nobody reads.
fn print(wanted: &Events, line: Line) -> Result<bool, CliError> {
    if wanted.json {
        let text = serde_json::to_string(&line)
            .map_err(|error| CliError::io("writing JSON")(error.into()))?;
        output::print_while_read(format!("{text}\n").as_bytes())
    } else {
        output::print_while_read(human(&line).as_bytes())
    }
}

/// As people read it. Words of an agent's cannot move the cursor.
fn human(line: &Line) -> String {
    let merged = |count: &u64, what: &str| match count {
        0 => String::new(),
        count => format!(" [{count} {what} not told]"),
    };
    let because = |reason: &Option<String>| match reason {
        Some(reason) => format!(" ({})", output::plain(reason, 300)),
        None => String::new(),
    };
    let said = match &line.what {
        What::Spawned { program, runtime } => {
            let runtime = format!("{runtime:?}").to_lowercase();
            vec![format!(
                "spawned {} ({runtime})",
                output::plain(program, 100)
            )]
        }
        What::State {
            state,
            previous_state,
            merged: count,
            current_tool,
            error,
        } => {
            // Another tool or error in the same state.
            let from = previous_state.filter(|from| from != state || *count > 0);
            let from = from.map_or(String::new(), |from| format!("{from} -> "));
            let to = output::coloured(&state.to_string(), "1");
            let between = merged(count, "in between");
            vec![format!(
                "state   {from}{to}{between}{}{}",
                because(current_tool),
                because(error)
            )]
        }
        What::Run {
            run,
            merged: count,
            error,
        } => {
            let more = merged(count, "before");
            vec![format!("run     {run}{more}{}", because(error))]
        }
        What::Kill {
            signal,
            escalate,
            uid,
            merged: count,
        } => {
            let then = if *escalate { ", then KILL" } else { "" };
            let more = merged(count, "before");
            vec![format!("kill    {signal}{then}, by uid {uid}{more}")]
        }
        What::Exit {
            exit_code,
            exit_signal,
            reason,
            error,
            ..
        } => {
            let exit = reason.map(|reason| Exit {
                status: exit_code
                    .map(ExitStatus::Code)
                    .or(exit_signal.map(ExitStatus::Signal)),
                reason,
            });
            vec![format!(
                "exit    {}{}",
                output::ending(exit),
                because(error)
            )]
        }
        What::Output { stream, data, .. } => {
            let stream = match stream {
                Stream::Stdout => "out",
                Stream::Stderr => "err",
            };
            let bytes = data.clone().into_bytes().unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            let lines = text
                .lines()
                .map(|line| format!("{stream}     {}", output::plain(line, 4096)));
            lines.collect()
        }
        What::Removed {} => vec!["removed".to_owned()],
        What::Gap { reason, missed } => {
            let missed = missed.map_or(String::new(), |count| format!(" [{count} not told]"));
            vec![format!("gap     {reason}{missed}")]
        }
    };
    let id = line.id.as_deref().unwrap_or("-");
    let name = line
        .name
        .as_deref()
        .map(|name| format!(" {}", output::plain(name, 24)));
    let head = format!("{} {id:<10}{}", line.time, name.unwrap_or_default());
    said.iter()
        .map(|said| format!("{head}  {said}\n"))
        .collect()
}
