//! `colibri-bench`: Colibri measured side by side with what one would use instead, on the same work, interleaved
//! in one run. docs/performance.md says what came of it and how to repeat it.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod colibri;
mod latency;
mod peers;
mod report;
mod spawn;
mod stats;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(
    version,
    about = "Measures Colibri side by side with what one would use instead"
)]
struct Args {
    /// Where the programs to be measured are.
    #[arg(long, global = true, default_value = "target/release")]
    programs: PathBuf,
    /// Where results are kept.
    #[arg(long, global = true, default_value = "target/bench")]
    results: PathBuf,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// From the request for a program until somebody has its first byte.
    Spawn {
        /// How often each is measured.
        #[arg(long, default_value_t = 1000)]
        rounds: usize,
    },
    /// From an agent's write until a subscriber has read it.
    Latency {
        /// How many writes are measured.
        #[arg(long, default_value_t = 2000)]
        count: usize,
        /// How many agents write beside.
        #[arg(long, default_value_t = 100)]
        busy: usize,
    },
    /// Writes what time it is; the agent of the measurement above.
    #[command(hide = true)]
    Stamp { every_us: u64, count: u64 },
}

fn main() -> Result<()> {
    let args = Args::parse();
    match args.what {
        What::Spawn { rounds } => {
            let (mut peers, _absent) = peers::all(&args.programs)?;
            let table = spawn::measure(&mut peers, rounds)?;
            report::keep(&args.results, "spawn", &[table])
        }
        What::Latency { count, busy } => {
            let table = latency::measure(&args.programs, count, busy)?;
            report::keep(&args.results, "latency", &[table])
        }
        What::Stamp { every_us, count } => latency::stamp(Duration::from_micros(every_us), count),
    }
}
