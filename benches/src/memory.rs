//! Cost of idle agents: memory of the daemon and of each shim, CPU time and wake-ups.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use colibri_client::{Agent, AgentState, Notification};

use crate::colibri::{Colibri, TIMEOUT, next_event};
use crate::process::{self, Work};
use crate::report::{Table, Unit};

/// Interval of the polls of agent states.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Starts agents, exchanges a line with each, and then measures all processes for the duration `window`.
pub(crate) fn measure(programs: &Path, agents: usize, window: Duration) -> Result<Table> {
    let mut colibri = Colibri::start(programs)?;
    let pid = colibri.pid()?;
    wait_until_idle(&colibri)?;
    let empty_memory = process::memory(pid)?;
    let empty_work = observe(&[pid], window)?;

    let started_at = Instant::now();
    start(&mut colibri, agents)?;
    eprintln!("{agents} agents started after {:?}", started_at.elapsed());
    let sent_at = Instant::now();
    echo(&mut colibri, agents)?;
    eprintln!("all agents answered after {:?}", sent_at.elapsed());
    wait_until_idle(&colibri)?;

    let shims = process::shim_pids(&colibri.directory().join("state"))?;
    let memory = shims.iter().map(|shim| process::memory(*shim));
    let memory = memory.collect::<Result<Vec<_>>>()?;
    let full_memory = process::memory(pid)?;
    let descriptors = process::descriptors(pid)?;
    let pids: Vec<u32> = std::iter::once(pid).chain(shims.iter().copied()).collect();
    let work = observe(&pids, window)?;
    let (daemon_work, shim_work) = work.split_first().context("no daemon")?;

    let count = agents as f64;
    let cpu_percent = |work: &Work| work.cpu.as_secs_f64() / window.as_secs_f64() * 100.0;
    let switches = |work: &[Work]| work.iter().map(|work| work.switches).sum::<u64>() as f64;
    let seconds = window.as_secs_f64();
    let mut table = Table::plain(&format!("Memory and idle cost with {agents} live agents"));
    let mut row = |subject: &str, unit, values: Vec<f64>, note: &str| {
        table.add_row(subject, unit, values, Some(note.to_owned()));
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
        vec![empty_memory.pss],
        "goal: at most 10000 kB",
    );
    row(
        "daemon with all agents, Pss",
        Unit::Bytes,
        vec![full_memory.pss],
        "",
    );
    row(
        "daemon, per agent",
        Unit::Bytes,
        vec![(full_memory.pss - empty_memory.pss) / count],
        "goal: at most 20 kB",
    );
    row(
        "daemon without agents, % CPU",
        Unit::Count,
        empty_work.iter().map(cpu_percent).collect(),
        "goal: below 1",
    );
    row(
        "daemon with all agents idle, % CPU",
        Unit::Count,
        vec![cpu_percent(daemon_work)],
        "goal: below 1",
    );
    let window = format!("in {seconds} s; goal: none");
    row(
        "daemon without agents, wake-ups",
        Unit::Count,
        vec![switches(&empty_work)],
        &window,
    );
    row(
        "daemon with all agents idle, wake-ups",
        Unit::Count,
        vec![daemon_work.switches as f64],
        &window,
    );
    row(
        "all shims, wake-ups",
        Unit::Count,
        vec![switches(shim_work)],
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

/// Starts agents that copy stdin to stdout.
fn start(colibri: &mut Colibri, agents: usize) -> Result<()> {
    let params = Colibri::params(&["cat"], false);
    for number in 0..agents {
        let client = colibri.client.clone();
        let spawned = client.spawn_agent(params.clone());
        let spawned = colibri.run_discarding_events(spawned)?;
        spawned.with_context(|| format!("agent {} of {agents}", number + 1))?;
    }
    Ok(())
}

/// Sends a line to all agents, and waits until each has written it.
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
            match next_event(events).await? {
                Notification::AgentOutput(output) => drop(silent.remove(&output.id)),
                Notification::AgentExit(exit) => bail!("{} ended: {:?}", exit.id, exit.error),
                _ => {}
            }
        }
        Ok(())
    };
    colibri
        .runtime
        .block_on(async { tokio::time::timeout(TIMEOUT, echoed).await })?
}

/// Waits until all agents are idle: output keeps an agent in the state `working` for a while.
fn wait_until_idle(colibri: &Colibri) -> Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let agents = colibri.runtime.block_on(colibri.client.list_agents())?;
        let is_busy = |agent: &&Agent| agent.state != AgentState::Idle;
        let busy = agents.iter().filter(is_busy).count();
        if busy == 0 {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{busy} agents are not idle");
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Returns the work of these processes in this period.
fn observe(pids: &[u32], window: Duration) -> Result<Vec<Work>> {
    // The effects of earlier calls must end first.
    std::thread::sleep(POLL_INTERVAL);
    let sample = || pids.iter().map(|pid| process::work(*pid));
    let before = sample().collect::<Result<Vec<_>>>()?;
    std::thread::sleep(window);
    let after = sample().collect::<Result<Vec<_>>>()?;
    let pairs = after.into_iter().zip(before);
    Ok(pairs.map(|(after, before)| after.since(before)).collect())
}
