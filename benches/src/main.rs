//! `colibri-bench` compares Colibri with alternatives: all do the same work in interleaved rounds. docs/performance.md has
//! the results and the commands.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod colibri;
mod compare;
mod latency;
mod memory;
mod peers;
mod plot;
mod process;
mod report;
mod rounds;
mod scale;
mod sizes;
mod spawn;
mod stats;
mod throughput;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::peers::Directories;

#[derive(Debug, Parser)]
#[command(version, about = "Benchmarks Colibri against its alternatives")]
struct Args {
    /// Directory of the programs to measure
    #[arg(long, global = true, default_value = "target/release")]
    programs: PathBuf,
    /// Directory for results
    #[arg(long, global = true, default_value = "target/bench")]
    results: PathBuf,
    /// Directory of the tools that scripts/bench.sh installs
    #[arg(long, global = true, default_value = "target/tools")]
    tools: PathBuf,
    /// Fail if an alternative cannot run here (except systemd-run)
    #[arg(long, global = true)]
    complete: bool,
    #[command(subcommand)]
    measurement: Measurement,
}

#[derive(Debug, Subcommand)]
enum Measurement {
    /// Run all measurements
    All {
        /// Run a short version of each
        #[arg(long)]
        smoke: bool,
    },
    /// From a spawn request until the caller has the first byte
    Spawn {
        /// Number of rounds
        #[arg(long, default_value_t = 1000)]
        rounds: usize,
    },
    /// From an agent's write until a subscriber has read it
    Latency {
        /// Number of measured writes
        #[arg(long, default_value_t = 2000)]
        count: usize,
        /// Number of other writing agents
        #[arg(long, default_value_t = 100)]
        busy: usize,
    },
    /// Write timestamps; runs as the agent of the latency measurement
    #[command(hide = true)]
    Stamp { every_us: u64, count: u64 },
    /// Throughput of stored output
    Throughput {
        /// Number of rounds
        #[arg(long, default_value_t = 10)]
        rounds: usize,
        /// Size of the output in MiB; below 256, where s6-log starts another file
        #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u32).range(1..256))]
        megabytes: u32,
    },
    /// Sizes of the programs
    Sizes,
    /// Compare two builds of Colibri
    Compare {
        /// Directory of the base programs
        #[arg(long)]
        base: PathBuf,
        /// Directory of the new programs
        #[arg(long)]
        new: PathBuf,
        #[command(flatten)]
        amount: compare::Amount,
    },
    /// Memory, CPU time and wake-ups of idle agents
    Memory {
        /// Number of agents
        #[arg(long, default_value_t = 1000)]
        agents: usize,
        /// Duration of the observation in seconds
        #[arg(long, default_value_t = 10.0)]
        window: f64,
    },
    /// Cost of calls by the number of agents, with a plot
    Scale {
        /// Numbers of agents
        #[arg(long, value_delimiter = ',', default_value = "10,100,1000,5000")]
        agents: Vec<usize>,
        /// Number of rounds
        #[arg(long, default_value_t = 20)]
        rounds: usize,
    },
}

impl Measurement {
    /// Returns all measurements, for `smoke` in a short version.
    fn all(smoke: bool) -> Vec<Self> {
        let rounds = |full| if smoke { 2 } else { full };
        vec![
            Self::Spawn {
                rounds: rounds(1000),
            },
            Self::Throughput {
                rounds: rounds(10),
                megabytes: if smoke { 4 } else { 250 },
            },
            Self::Latency {
                count: if smoke { 20 } else { 2000 },
                busy: if smoke { 5 } else { 100 },
            },
            Self::Sizes,
            Self::Memory {
                agents: if smoke { 20 } else { 1000 },
                window: if smoke { 1.0 } else { 10.0 },
            },
            Self::Scale {
                agents: match smoke {
                    true => vec![10, 20],
                    false => vec![10, 100, 1000, 5000],
                },
                rounds: if smoke { 1 } else { 20 },
            },
        ]
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    match args.measurement {
        Measurement::Stamp { every_us, count } => {
            latency::write_timestamps(Duration::from_micros(every_us), count)
        }
        Measurement::All { smoke } => {
            for measurement in Measurement::all(smoke) {
                measure(&args, &measurement)?;
            }
            Ok(())
        }
        Measurement::Compare { base, new, amount } => {
            let tables = compare::measure(&base, &new, amount)?;
            report::save(&args.results, "compare", &tables)?;
            println!("{}", compare::summary(&tables));
            Ok(())
        }
        _ => measure(&args, &args.measurement),
    }
}

/// Runs a measurement, prints its tables and saves them.
fn measure(args: &Args, measurement: &Measurement) -> Result<()> {
    let directories = Directories {
        programs: args.programs.clone(),
        tools: args.tools.clone(),
    };
    let (name, tables) = match measurement {
        Measurement::All { .. } | Measurement::Stamp { .. } | Measurement::Compare { .. } => {
            return Ok(());
        }
        Measurement::Spawn { rounds } => {
            let mut peers = peers::spawning(&directories)?.require_all(args.complete)?;
            ("spawn", vec![spawn::measure(&mut peers, *rounds)?])
        }
        Measurement::Throughput { rounds, megabytes } => {
            let mut peers = peers::storing(&directories)?.require_all(args.complete)?;
            let table = throughput::measure(&mut peers, *rounds, *megabytes)?;
            ("throughput", vec![table])
        }
        Measurement::Latency { count, busy } => {
            let table = latency::measure(&args.programs, *count, *busy)?;
            ("latency", vec![table])
        }
        Measurement::Sizes => ("sizes", vec![sizes::measure(&args.programs)]),
        Measurement::Memory { agents, window } => {
            let window = Duration::try_from_secs_f64(*window)?;
            let table = memory::measure(&args.programs, *agents, window)?;
            ("memory", vec![table])
        }
        Measurement::Scale { agents, rounds } => {
            let plot = args.results.join("scale.svg");
            let tables = scale::measure(&args.programs, agents, *rounds, &plot)?;
            ("scale", tables)
        }
    };
    report::save(&args.results, name, &tables)
}
