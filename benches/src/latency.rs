//! Latency from a write of an agent until a subscriber has read it.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use colibri_client::{Notification, Stream, SubscribeParams};
use rustix::time::{ClockId, clock_gettime};

use crate::colibri::{Colibri, next_event};
use crate::report::{Row, Table, Unit};
use crate::stats::Samples;

/// Interval of the writes of the measured agent, in which the machine becomes idle.
const WRITE_INTERVAL: Duration = Duration::from_millis(5);

/// Returns nanoseconds of a clock that all processes share.
fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Runs as the agent: writes a timestamp in each interval.
pub(crate) fn write_timestamps(interval: Duration, count: u64) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    for _ in 0..count {
        std::thread::sleep(interval);
        stdout.write_all(format!("{:<99}\n", now()).as_bytes())?;
        stdout.flush()?;
    }
    Ok(())
}

/// Measures a plain pipe for comparison, one agent alone, and one agent next to other writing agents.
pub(crate) fn measure(programs: &Path, count: usize, busy: usize) -> Result<Table> {
    let mut table = Table::new("From an agent's write to a subscriber's read");
    table.rows.push(Row {
        subject: "a pipe without Colibri".to_owned(),
        unit: Unit::Seconds,
        samples: pipe_latency(count)?,
        note: None,
    });
    for (others, interval) in [
        (0, WRITE_INTERVAL),
        (busy, Duration::from_millis(100)),
        (busy, Duration::from_millis(10)),
    ] {
        let subject = match others {
            0 => "one agent".to_owned(),
            _ => format!(
                "with {others} other agents at {} lines/s each",
                1000 / interval.as_millis()
            ),
        };
        let mut colibri = Colibri::start(programs)?;
        for _ in 0..others {
            start(&colibri, interval, u64::MAX)?;
        }
        let id = start(&colibri, WRITE_INTERVAL, count as u64)?;
        let samples = follow(&mut colibri, &id).with_context(|| subject.clone())?;
        table.rows.push(Row {
            subject,
            unit: Unit::Seconds,
            samples,
            note: None,
        });
    }
    Ok(table)
}

/// Returns the latency of a plain pipe, the lower bound: one process wakes another one.
fn pipe_latency(count: usize) -> Result<Samples> {
    let mut child = Command::new(std::env::current_exe()?)
        .args([
            "stamp",
            &WRITE_INTERVAL.as_micros().to_string(),
            &count.to_string(),
        ])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut samples = Samples::default();
    for line in BufReader::new(child.stdout.take().context("no stdout")?).lines() {
        let received_at = now();
        let stamp: u64 = line?.trim().parse()?;
        samples
            .0
            .push(received_at.saturating_sub(stamp) as f64 / 1e9);
    }
    child.wait()?;
    Ok(samples)
}

/// Starts an agent that writes timestamps, and returns its id.
fn start(colibri: &Colibri, interval: Duration, count: u64) -> Result<String> {
    let executable = std::env::current_exe()?;
    let interval = interval.as_micros().to_string();
    let command = [
        executable
            .to_str()
            .context("the path of this program is not UTF-8")?,
        "stamp",
        &interval,
        &count.to_string(),
    ];
    let params = Colibri::params(&command, false);
    let spawned = colibri.client.spawn_agent(params);
    Ok(colibri.runtime.block_on(spawned)?.id)
}

/// Returns the age of each timestamp when it is received.
fn follow(colibri: &mut Colibri, id: &str) -> Result<Samples> {
    let params = SubscribeParams {
        id: Some(id.to_owned()),
        from_offset: Some(0),
        ..SubscribeParams::default()
    };
    let client = colibri.client.clone();
    colibri.runtime.block_on(async {
        let mut events = client.subscribe(params).await?;
        let mut samples = Samples::default();
        let mut line = Vec::new();
        loop {
            match next_event(&mut events).await? {
                Notification::AgentOutput(output) if output.stream == Stream::Stdout => {
                    let received_at = now();
                    line.extend(output.data.into_bytes()?);
                    for stamp in line.split(|byte| *byte == b'\n') {
                        let stamp: Option<u64> = std::str::from_utf8(stamp)?.trim().parse().ok();
                        samples.0.extend(
                            stamp.map(|stamp| received_at.saturating_sub(stamp) as f64 / 1e9),
                        );
                    }
                    // The agent writes whole lines.
                    line.clear();
                }
                Notification::AgentExit(_) => return Ok(samples),
                _ => {}
            }
        }
    })
}
