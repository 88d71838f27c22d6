//! Cost of idle agents: memory of the daemon and of each shim, CPU time, wake-ups.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use colibri_client::{AgentState, Notification};

use crate::colibri::{Colibri, PATIENCE};
use crate::process::{self, Work};
use crate::report::{Table, Unit};

/// Interval of the checks whether all agents are idle.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Starts the agents, exchanges a line with each, and then observes all processes for `window`.
pub(crate) fn measure(programs: &Path, agents: usize, window: Duration) -> Result<Table> {
    let mut colibri = Colibri::start(programs)?;
    let pid = colibri.pid()?;
    settle(&colibri)?;
    let idle = process::memory(pid)?;
    let empty = observe(&[pid], window)?;

    let started = Instant::now();
    start(&mut colibri, agents)?;
    eprintln!("{agents} agents started after {:?}", started.elapsed());
    let echoed = Instant::now();
    echo(&mut colibri, agents)?;
    eprintln!("all agents answered after {:?}", echoed.elapsed());
    settle(&colibri)?;

    let shims = process::shims(&colibri.directory().join("state"))?;
    let memory = shims.iter().map(|shim| process::memory(*shim));
    let memory = memory.collect::<Result<Vec<_>>>()?;
    let full = process::memory(pid)?;
    let descriptors = process::descriptors(pid)?;
    let watched: Vec<u32> = std::iter::once(pid).chain(shims.iter().copied()).collect();
    let work = observe(&watched, window)?;
    let (daemon, of_shims) = work.split_first().context("no daemon")?;

    let count = agents as f64;
    let share = |work: &Work| work.cpu.as_secs_f64() / window.as_secs_f64() * 100.0;
    let switches = |of: &[Work]| of.iter().map(|work| work.switches).sum::<u64>() as f64;
    let seconds = window.as_secs_f64();
    let mut table = Table::plain(&format!("Memory and idle cost with {agents} live agents"));
    let mut row = |subject: &str, unit, values: Vec<f64>, note: &str| {
        table.row(subject, unit, values, Some(note.to_owned()));
    };
    row(
        "shim, Pss",
        Unit::Bytes,
        memory.iter().map(|memory| memory.pss).collect(),
        "goal: at most 1200 kB; one sample per shim",
    );
    row(
        "shim, private pages",
        Unit::Bytes,
        memory.iter().map(|memory| memory.private).collect(),
        "Private_Dirty and Private_Clean",
    );
    row(
        "daemon without agents, Pss",
        Unit::Bytes,
        vec![idle.pss],
        "goal: at most 10000 kB",
    );
    row(
        "daemon with all agents, Pss",
        Unit::Bytes,
        vec![full.pss],
        "",
    );
    row(
        "daemon, per agent",
        Unit::Bytes,
        vec![(full.pss - idle.pss) / count],
        "goal: at most 20 kB",
    );
    row(
        "daemon without agents, % CPU",
        Unit::Count,
        empty.iter().map(share).collect(),
        "goal: below 1",
    );
    row(
        "daemon with all agents idle, % CPU",
        Unit::Count,
        vec![share(daemon)],
        "goal: below 1",
    );
    let window = format!("in {seconds} s; goal: none");
    row(
        "daemon without agents, wake-ups",
        Unit::Count,
        vec![switches(&empty)],
        &window,
    );
    row(
        "daemon with all agents idle, wake-ups",
        Unit::Count,
        vec![daemon.switches as f64],
        &window,
    );
    row(
        "all shims, wake-ups",
        Unit::Count,
        vec![switches(of_shims)],
        &window,
    );
    row(
        "daemon, descriptors",
        Unit::Count,
        vec![descriptors as f64],
        "including the benchmark's connections",
    );
    Ok(table)
}

fn start(colibri: &mut Colibri, agents: usize) -> Result<()> {
    let params = Colibri::params(&["cat"], false);
    for number in 0..agents {
        let client = colibri.client.clone();
        let spawned = client.spawn_agent(params.clone());
        let spawned = colibri.taking_events(spawned)?;
        spawned.with_context(|| format!("agent {} of {agents}", number + 1))?;
    }
    Ok(())
}

/// Sends a line to all agents and reads it back from each while all of them run.
fn echo(colibri: &mut Colibri, agents: usize) -> Result<()> {
    let (client, events) = (&colibri.client, &mut colibri.events);
    let echoed = async {
        let mut silent = HashSet::new();
        for agent in client.list_agents().await? {
            client.send_input(&agent.id, b"ping\n").await?;
            silent.insert(agent.id);
        }
        if silent.len() != agents {
            bail!("{} of {agents} agents are listed", silent.len());
        }
        while !silent.is_empty() {
            match events
                .next()
                .await
                .context("the connection to the daemon ended")?
            {
                Notification::AgentOutput(output) => drop(silent.remove(&output.id)),
                Notification::AgentExit(exit) => bail!("{} ended: {:?}", exit.id, exit.error),
                _ => {}
            }
        }
        Ok(())
    };
    colibri
        .runtime
        .block_on(async { tokio::time::timeout(PATIENCE, echoed).await })?
}

/// Waits until all agents are idle: output keeps an agent in the state `working` for a while.
fn settle(colibri: &Colibri) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        let all = colibri.runtime.block_on(colibri.client.list_agents())?;
        let idle = |state| state == AgentState::Idle;
        let busy = all.iter().filter(|agent| !idle(agent.state)).count();
        if busy == 0 {
            return Ok(());
        }
        if Instant::now() > until {
            bail!("{busy} agents are not idle");
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Returns the work of these processes within this time.
fn observe(pids: &[u32], window: Duration) -> Result<Vec<Work>> {
    // Lets the effects of earlier calls end first.
    std::thread::sleep(POLL_INTERVAL);
    let sample = || pids.iter().map(|pid| process::work(*pid));
    let before = sample().collect::<Result<Vec<_>>>()?;
    std::thread::sleep(window);
    let after = sample().collect::<Result<Vec<_>>>()?;
    let pairs = after.into_iter().zip(before);
    Ok(pairs.map(|(after, before)| after.since(before)).collect())
}
