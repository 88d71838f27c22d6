//! Compares the speed and memory of two builds of Colibri with interleaved measurements.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use colibri_client::{Notification, StreamChoice, SubscribeParams};

use crate::colibri::{Colibri, kill_and_remove, next_event};
use crate::process;
use crate::report::{Row, Table, Unit};
use crate::spawn::COMMAND;
use crate::stats::Samples;

/// Minimum number of rounds for meaningful quartiles.
const MIN_ROUNDS: usize = 12;

/// Number of rounds, agents and bytes of a comparison.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Amount {
    /// Number of rounds
    #[arg(long, default_value_t = 30)]
    rounds: usize,
    /// Number of idle agents during the measurement, and in the list
    #[arg(long, default_value_t = 100)]
    agents: usize,
    /// Output of an agent that writes at full speed, in MiB
    #[arg(long, default_value_t = 64)]
    mebibytes: u64,
}

/// A running build.
struct Build {
    colibri: Colibri,
    /// Ids of the idle agents.
    idle: Vec<String>,
    /// Id of the agent that copies a FIFO to its stdout.
    echo: String,
    fifo: File,
    /// Length of the text that [`Build::throughput`] writes.
    bytes: u64,
}

/// Measures a build once.
type Measure = fn(&mut Build) -> Result<f64>;

/// Title, unit, repetitions per round, and function of each measurement.
const MEASUREMENTS: &[(&str, Unit, usize, Measure)] = &[
    ("spawn, no jail", Unit::Seconds, 5, |build| {
        Ok(build.colibri.first_byte(COMMAND, false)?.as_secs_f64())
    }),
    ("spawn, sandbox", Unit::Seconds, 5, |build| {
        Ok(build.colibri.first_byte(COMMAND, true)?.as_secs_f64())
    }),
    (
        "from a write to a subscriber",
        Unit::Seconds,
        20,
        Build::latency,
    ),
    ("output, no subscriber", Unit::BytesPerSecond, 1, |build| {
        build.throughput(false)
    }),
    (
        "output, with a subscriber",
        Unit::BytesPerSecond,
        1,
        |build| build.throughput(true),
    ),
    ("list of all agents", Unit::Seconds, 5, Build::list_duration),
    ("memory of the daemon, Pss", Unit::Bytes, 1, |build| {
        Ok(process::memory(build.colibri.pid()?)?.pss)
    }),
    ("memory of a shim, Pss", Unit::Bytes, 1, Build::shim_memory),
];

/// Returns one table per measurement, with `base` in the first row and `new` in the second.
pub(crate) fn measure(base: &Path, new: &Path, amount: Amount) -> Result<Vec<Table>> {
    let mut builds = [Build::start(base, amount)?, Build::start(new, amount)?];
    let names = ["base", "new"];
    let mut tables: Vec<Table> = MEASUREMENTS
        .iter()
        .map(|(title, unit, ..)| {
            let mut table = Table::new(title);
            table.rows.extend(names.map(|name| Row {
                subject: name.to_owned(),
                unit: *unit,
                samples: Samples::default(),
                note: None,
            }));
            table
        })
        .collect();
    // The first round warms caches and is not counted.
    for round in 0..=amount.rounds {
        for ((title, _, repetitions, measure), table) in MEASUREMENTS.iter().zip(&mut tables) {
            for _ in 0..*repetitions {
                let mut pair: Vec<_> = builds.iter_mut().zip(&mut table.rows).collect();
                fastrand::shuffle(&mut pair);
                for (build, row) in pair {
                    let value =
                        measure(build).with_context(|| format!("{title}, {}", row.subject))?;
                    if round > 0 {
                        row.samples.0.push(value);
                    }
                }
            }
        }
    }
    Ok(tables)
}

/// Returns one line per table: the ratio of `new` to `base`, and whether it exceeds the noise.
pub(crate) fn summary(tables: &[Table]) -> String {
    let mut text = String::from("new / base, with quartiles:\n");
    for table in tables {
        let [base, new] = table.rows.as_slice() else {
            continue;
        };
        let ratio = new.samples.over(&base.samples);
        let [low, median, high] = [0.25, 0.5, 0.75].map(|share| ratio.quantile(share));
        let is_better = matches!(new.unit, Unit::BytesPerSecond) == (median > 1.0);
        let message = match (ratio.0.len(), is_better) {
            (..MIN_ROUNDS, _) => "too few rounds",
            _ if low <= 1.0 && high >= 1.0 => "within the noise",
            (_, true) => "BETTER",
            (_, false) => "WORSE",
        };
        let _ = writeln!(
            text,
            "{:<30} {median:.3} ({low:.3} to {high:.3})  {message}",
            table.title
        );
    }
    text
}

impl Build {
    fn start(programs: &Path, amount: Amount) -> Result<Self> {
        let colibri = Colibri::start(programs)?;
        let path = colibri.directory().join("fifo");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0)?;
        // With a descriptor for reading and writing, open(2) does not wait for the agent, and the agent reads no EOF.
        let fifo = OpenOptions::new().read(true).write(true).open(&path)?;
        let spawn = |command: &[&str]| {
            let spawned = colibri.client.spawn_agent(Colibri::params(command, false));
            anyhow::Ok(colibri.runtime.block_on(spawned)?.id)
        };
        let idle = (0..amount.agents)
            .map(|_| spawn(&["sleep", "100000"]))
            .collect::<Result<Vec<_>>>()?;
        let bytes = amount.mebibytes << 20;
        let line = b"test result: ok. 27 passed; 0 failed; finished in 0.04 seconds.\n";
        let text: Vec<u8> = line.repeat(usize::try_from(bytes)? / line.len());
        fs::write(colibri.directory().join("text"), text)?;
        let echo = spawn(&["cat", path.to_str().context("not UTF-8")?])?;
        Ok(Self {
            colibri,
            idle,
            echo,
            fifo,
            bytes,
        })
    }

    /// Returns the time that a byte takes from the FIFO through the agent, its shim and the daemon to a subscriber.
    fn latency(&mut self) -> Result<f64> {
        let (events, echo) = (&mut self.colibri.events, &self.echo);
        let written = Instant::now();
        self.fifo.write_all(b"\n")?;
        self.colibri.runtime.block_on(async {
            loop {
                match next_event(events).await? {
                    Notification::AgentOutput(output) if output.id == *echo => break,
                    _ => {}
                }
            }
            Ok(written.elapsed().as_secs_f64())
        })
    }

    /// Returns the stored bytes per second of an agent that writes at full speed, from its spawn to its end.
    fn throughput(&mut self, is_subscribed: bool) -> Result<f64> {
        self.subscribe((!is_subscribed).then_some(StreamChoice::None))?;
        let bytes = self.bytes;
        let text = self.colibri.directory().join("text");
        let params = Colibri::params(&["cat", text.to_str().context("not UTF-8")?], false);
        let (client, events) = (&self.colibri.client, &mut self.colibri.events);
        let duration = self.colibri.runtime.block_on(async {
            let requested_at = Instant::now();
            let id = client.spawn_agent(params).await?.id;
            let mut received = 0;
            loop {
                match next_event(events).await? {
                    Notification::AgentOutput(output) if output.id == id => {
                        received += output.data.into_bytes()?.len() as u64;
                    }
                    Notification::AgentExit(exit) if exit.id == id => break,
                    _ => {}
                }
            }
            let duration = requested_at.elapsed();
            let expected = if is_subscribed { bytes } else { 0 };
            ensure!(received == expected, "received {received} bytes");
            let stored = client.get_agent(&id).await?.stdout_bytes;
            ensure!(stored == bytes, "{stored} bytes were stored");
            kill_and_remove(client, &id).await?;
            anyhow::Ok(duration)
        })?;
        self.subscribe(None)?;
        Ok(bytes as f64 / duration.as_secs_f64())
    }

    /// Replaces the subscription by one with these outputs, or with all.
    fn subscribe(&mut self, stream: Option<StreamChoice>) -> Result<()> {
        self.colibri.subscribe(SubscribeParams {
            stream,
            ..SubscribeParams::default()
        })
    }

    /// Returns the time of one `list-agents` call, in seconds.
    fn list_duration(&mut self) -> Result<f64> {
        let requested_at = Instant::now();
        let agents = self
            .colibri
            .runtime
            .block_on(self.colibri.client.list_agents())?;
        let duration: Duration = requested_at.elapsed();
        ensure!(
            agents.len() == self.idle.len() + 1,
            "{} agents are running",
            agents.len()
        );
        Ok(duration.as_secs_f64())
    }

    /// Returns the median memory of the shims.
    fn shim_memory(&mut self) -> Result<f64> {
        let agents = self.colibri.directory().join("state/agents");
        let shims = self.idle.iter().map(|id| {
            let pid = process::shim_pid(&agents.join(id))?;
            Ok(process::memory(pid)?.pss)
        });
        Ok(Samples(shims.collect::<Result<_>>()?).median())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn difference_within_noise_is_not_reported() {
        let table = |unit, factor: f64, noise: f64, rounds: usize| {
            let rows = [("base", 1.0, 0.0), ("new", factor, noise)];
            let row = |(subject, factor, noise): (&str, f64, f64)| {
                let at = |round: usize| {
                    factor
                        + if round.is_multiple_of(2) {
                            noise
                        } else {
                            -noise
                        }
                };
                Row {
                    subject: subject.to_owned(),
                    unit,
                    samples: Samples((0..rounds).map(at).collect()),
                    note: None,
                }
            };
            Table {
                rows: rows.map(row).into(),
                ..Table::new("title")
            }
        };
        for (unit, factor, noise, rounds, message) in [
            (Unit::Seconds, 1.5, 0.1, 12, "WORSE"),
            (Unit::Seconds, 0.5, 0.1, 12, "BETTER"),
            (Unit::BytesPerSecond, 1.5, 0.1, 12, "BETTER"),
            (Unit::BytesPerSecond, 0.5, 0.1, 12, "WORSE"),
            (Unit::Bytes, 1.05, 0.1, 12, "within the noise"),
            (Unit::Bytes, 1.0, 0.0, 12, "within the noise"),
            (Unit::Seconds, 1.5, 0.1, 11, "too few rounds"),
        ] {
            let text = summary(&[table(unit, factor, noise, rounds)]);
            assert!(text.ends_with(&format!("  {message}\n")), "{text}");
        }
    }
}
