//! Cost of calls by the number of agents, running or ended.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use colibri_client::{KillParams, SpawnRequest};
use tokio::task::JoinSet;

use crate::colibri::Colibri;
use crate::plot::{Series, plot};
use crate::process;
use crate::report::{Table, Unit};

/// Number of concurrent spawns while agents are started.
const AT_ONCE: usize = 16;
/// Maximum number of adoptions at each number of agents, because they are slow.
const RESTARTS: usize = 5;

/// Kind of agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Crowd {
    Live,
    Ended,
}

impl Crowd {
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

/// Measures at each number of agents, and plots the calls.
pub(crate) fn measure(
    programs: &Path,
    agents: &[usize],
    rounds: usize,
    picture: &Path,
) -> Result<Vec<Table>> {
    let mut numbers = agents.to_vec();
    numbers.sort_unstable();
    let mut tables = Vec::new();
    let mut lines: Vec<Series> = Vec::new();
    for crowd in [Crowd::Live, Crowd::Ended] {
        let mut colibri = Colibri::start(programs)?;
        for number in &numbers {
            let started = Instant::now();
            grow(&mut colibri, crowd, *number)?;
            let name = crowd.name();
            eprintln!("{number} {name} agents after {:?}", started.elapsed());
            let (table, medians) = at(&mut colibri, crowd, *number, rounds)?;
            for (call, median) in medians {
                let name = format!("{call}, {name}");
                let point = (*number as f64, median);
                match lines.iter_mut().find(|line| line.name == name) {
                    Some(line) => line.points.push(point),
                    None => lines.push(Series {
                        name,
                        dashed: crowd == Crowd::Ended,
                        points: vec![point],
                    }),
                }
            }
            tables.push(table);
        }
    }
    plot(
        picture,
        "Cost of a call by the number of agents",
        "agents",
        "milliseconds",
        &lines,
    )?;
    Ok(tables)
}

/// Starts agents until their number is reached.
fn grow(colibri: &mut Colibri, crowd: Crowd, number: usize) -> Result<()> {
    let client = colibri.client.clone();
    let work = async move {
        let mut there = client.list_agents().await?.len();
        let mut under_way = JoinSet::new();
        let mut missing = number.saturating_sub(there);
        loop {
            while missing > 0 && under_way.len() < AT_ONCE {
                missing -= 1;
                let client = client.clone();
                under_way.spawn(async move {
                    let id = client.spawn_agent(crowd.params()).await?.id;
                    if crowd == Crowd::Ended {
                        client.wait_agent(&id).await?;
                    }
                    anyhow::Ok(())
                });
            }
            let Some(done) = under_way.join_next().await else {
                break;
            };
            done??;
            there += 1;
            if there.is_multiple_of(500) {
                eprintln!("{there} {} agents", crowd.name());
            }
        }
        let there = client.list_agents().await?;
        let ended = there.iter().filter(|agent| agent.exited_at.is_some());
        let right = match crowd {
            Crowd::Live => there.len() - ended.count(),
            Crowd::Ended => ended.count(),
        };
        if right != number {
            bail!("{right} of {number} agents are {}", crowd.name());
        }
        Ok(())
    };
    colibri.taking_events(work)?
}

/// Medians in milliseconds by call.
type Medians = Vec<(&'static str, f64)>;

fn at(
    colibri: &mut Colibri,
    crowd: Crowd,
    number: usize,
    rounds: usize,
) -> Result<(Table, Medians)> {
    let memory = process::memory(colibri.pid()?)?;
    let (mut list, mut running, mut spawn, mut kill) = (vec![], vec![], vec![], vec![]);
    let mut list_cpu = Vec::new();
    for _ in 0..rounds {
        let pid = colibri.pid()?;
        let before = process::work(pid)?;
        let (took, there) = timed(colibri, |client| async move { client.list_agents().await })?;
        list_cpu.push(process::work(pid)?.since(before).cpu.as_secs_f64());
        list.push(took);
        if there.len() != number {
            bail!("{} of {number} agents are listed", there.len());
        }
        let (took, _) = timed(colibri, |client| async move { client.list_running().await })?;
        running.push(took);
        let (took, spawned) = timed(colibri, |client| async move {
            client.spawn_agent(Crowd::Live.params()).await
        })?;
        spawn.push(took);
        let params = KillParams::new(&spawned.id);
        let (took, _) = timed(
            colibri,
            |client| async move { client.kill_agent(params).await },
        )?;
        kill.push(took);
        timed(colibri, |client| async move {
            client.remove_agent(&spawned.id).await
        })?;
    }
    let (mut adopt, mut adopt_cpu, mut adopted) = (vec![], vec![], vec![]);
    for _ in 0..rounds.min(RESTARTS) {
        adopt.push(colibri.restart()?.as_secs_f64());
        let pid = colibri.pid()?;
        adopt_cpu.push(process::work(pid)?.cpu.as_secs_f64());
        let (_, there) = timed(colibri, |client| async move { client.list_agents().await })?;
        if there.len() != number {
            bail!("{} of {number} agents are adopted", there.len());
        }
        adopted.push(process::memory(pid)?.pss);
    }
    let mut table = Table::plain(&format!("With {number} {} agents", crowd.name()));
    let mut medians = Medians::new();
    for (call, samples) in [
        ("list-agents", list),
        ("list-agents, running only", running),
        ("spawn-agent", spawn),
        ("kill-agent", kill),
        ("adoption", adopt),
    ] {
        let median = table.row(call, Unit::Seconds, samples, None);
        medians.push((call, median * 1e3));
    }
    let processor = Some("CPU time of the daemon".to_owned());
    table.row("list-agents", Unit::Seconds, list_cpu, processor.clone());
    table.row("adoption", Unit::Seconds, adopt_cpu, processor);
    table.row(
        "daemon that started them, Pss",
        Unit::Bytes,
        vec![memory.pss],
        None,
    );
    table.row("daemon that adopted them, Pss", Unit::Bytes, adopted, None);
    Ok((table, medians))
}

/// Returns the result of a call and its duration in seconds.
fn timed<T, F: Future<Output = Result<T, colibri_client::ClientError>>>(
    colibri: &mut Colibri,
    call: impl FnOnce(colibri_client::Client) -> F,
) -> Result<(f64, T)> {
    let client = colibri.client.clone();
    let work = async {
        let asked = Instant::now();
        let answer = call(client).await;
        (asked.elapsed(), answer)
    };
    let (took, answer): (Duration, _) = colibri.taking_events(work)?;
    Ok((took.as_secs_f64(), answer.context("a call failed")?))
}
