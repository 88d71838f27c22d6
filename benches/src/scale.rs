//! Cost of calls by the number of live or ended agents.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use colibri_client::{KillParams, SpawnRequest};
use tokio::task::JoinSet;

use crate::colibri::Colibri;
use crate::plot::{Series, plot};
use crate::process;
use crate::report::{Table, Unit};

/// Maximum number of concurrent spawns.
const CONCURRENT_SPAWNS: usize = 16;
/// Maximum number of measured adoptions per number of agents, because they are slow.
const MAX_ADOPTIONS: usize = 5;

/// Kind of the agents of a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AgentKind {
    Live,
    Ended,
}

impl AgentKind {
    fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Ended => "ended",
        }
    }

    fn params(self) -> SpawnRequest {
        let program = match self {
            Self::Live => "cat",
            Self::Ended => "true",
        };
        Colibri::params(&[program], false)
    }
}

/// Measures with each number of agents, and plots the costs of the calls.
pub(crate) fn measure(
    programs: &Path,
    agents: &[usize],
    rounds: usize,
    plot_path: &Path,
) -> Result<Vec<Table>> {
    let mut counts = agents.to_vec();
    counts.sort_unstable();
    let mut tables = Vec::new();
    let mut lines: Vec<Series> = Vec::new();
    for kind in [AgentKind::Live, AgentKind::Ended] {
        let mut colibri = Colibri::start(programs)?;
        for count in &counts {
            let started = Instant::now();
            start_agents(&mut colibri, kind, *count)?;
            let name = kind.name();
            eprintln!("{count} {name} agents after {:?}", started.elapsed());
            let (table, medians) = measure_calls(&mut colibri, kind, *count, rounds)?;
            for (call, median) in medians {
                let name = format!("{call}, {name}");
                let point = (*count as f64, median);
                match lines.iter_mut().find(|line| line.name == name) {
                    Some(line) => line.points.push(point),
                    None => lines.push(Series {
                        name,
                        is_secondary: kind == AgentKind::Ended,
                        points: vec![point],
                    }),
                }
            }
            tables.push(table);
        }
    }
    plot(
        plot_path,
        "Cost of a call by the number of agents",
        "agents",
        "milliseconds",
        &lines,
    )?;
    Ok(tables)
}

/// Starts agents until there are `count` of them.
fn start_agents(colibri: &mut Colibri, kind: AgentKind, count: usize) -> Result<()> {
    let client = colibri.client.clone();
    let work = async move {
        let mut started = client.list_agents().await?.len();
        let mut spawns = JoinSet::new();
        let mut missing = count.saturating_sub(started);
        loop {
            while missing > 0 && spawns.len() < CONCURRENT_SPAWNS {
                missing -= 1;
                let client = client.clone();
                spawns.spawn(async move {
                    let id = client.spawn_agent(kind.params()).await?.id;
                    if kind == AgentKind::Ended {
                        client.wait_agent(&id).await?;
                    }
                    anyhow::Ok(())
                });
            }
            let Some(done) = spawns.join_next().await else {
                break;
            };
            done??;
            started += 1;
            if started.is_multiple_of(500) {
                eprintln!("{started} {} agents", kind.name());
            }
        }
        let agents = client.list_agents().await?;
        let ended = agents.iter().filter(|agent| agent.exited_at.is_some());
        let actual = match kind {
            AgentKind::Live => agents.len() - ended.count(),
            AgentKind::Ended => ended.count(),
        };
        if actual != count {
            bail!("{actual} of {count} agents are {}", kind.name());
        }
        Ok(())
    };
    colibri.run_discarding_events(work)?
}

/// Median durations of the calls, in milliseconds.
type Medians = Vec<(&'static str, f64)>;

/// Measures all calls with this number of agents.
fn measure_calls(
    colibri: &mut Colibri,
    kind: AgentKind,
    count: usize,
    rounds: usize,
) -> Result<(Table, Medians)> {
    let memory = process::memory(colibri.pid()?)?;
    let (mut list, mut running, mut spawn, mut kill) = (vec![], vec![], vec![], vec![]);
    let mut list_cpu = Vec::new();
    for _ in 0..rounds {
        let pid = colibri.pid()?;
        let before = process::work(pid)?;
        let (duration, listed) =
            timed(colibri, |client| async move { client.list_agents().await })?;
        list_cpu.push(process::work(pid)?.since(before).cpu.as_secs_f64());
        list.push(duration);
        if listed.len() != count {
            bail!("{} of {count} agents are listed", listed.len());
        }
        let (duration, _) = timed(colibri, |client| async move { client.list_running().await })?;
        running.push(duration);
        let (duration, spawned) = timed(colibri, |client| async move {
            client.spawn_agent(AgentKind::Live.params()).await
        })?;
        spawn.push(duration);
        let params = KillParams::new(&spawned.id);
        let (duration, _) = timed(
            colibri,
            |client| async move { client.kill_agent(params).await },
        )?;
        kill.push(duration);
        timed(colibri, |client| async move {
            client.remove_agent(&spawned.id).await
        })?;
    }
    let (mut adopt, mut adopt_cpu, mut adopted) = (vec![], vec![], vec![]);
    for _ in 0..rounds.min(MAX_ADOPTIONS) {
        adopt.push(colibri.restart()?.as_secs_f64());
        let pid = colibri.pid()?;
        adopt_cpu.push(process::work(pid)?.cpu.as_secs_f64());
        let (_, listed) = timed(colibri, |client| async move { client.list_agents().await })?;
        if listed.len() != count {
            bail!("{} of {count} agents are adopted", listed.len());
        }
        adopted.push(process::memory(pid)?.pss);
    }
    let mut table = Table::plain(&format!("With {count} {} agents", kind.name()));
    let mut medians = Medians::new();
    for (call, samples) in [
        ("list-agents", list),
        ("list-agents, running only", running),
        ("spawn-agent", spawn),
        ("kill-agent", kill),
        ("adoption", adopt),
    ] {
        let median = table.add_row(call, Unit::Seconds, samples, None);
        medians.push((call, median * 1e3));
    }
    let note = Some("CPU time of the daemon".to_owned());
    table.add_row("list-agents", Unit::Seconds, list_cpu, note.clone());
    table.add_row("adoption", Unit::Seconds, adopt_cpu, note);
    table.add_row(
        "daemon that started them, Pss",
        Unit::Bytes,
        vec![memory.pss],
        None,
    );
    table.add_row("daemon that adopted them, Pss", Unit::Bytes, adopted, None);
    Ok((table, medians))
}

/// Returns the result of a call and its duration in seconds.
fn timed<T, F: Future<Output = Result<T, colibri_client::ClientError>>>(
    colibri: &mut Colibri,
    call: impl FnOnce(colibri_client::Client) -> F,
) -> Result<(f64, T)> {
    let client = colibri.client.clone();
    let work = async {
        let requested_at = Instant::now();
        let answer = call(client).await;
        (requested_at.elapsed(), answer)
    };
    let (duration, answer): (Duration, _) = colibri.run_discarding_events(work)?;
    Ok((duration.as_secs_f64(), answer.context("a call failed")?))
}
