//! Throughput of stored output of a program that writes at full speed.

use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use tempfile::NamedTempFile;

use crate::peers::{Copies, Peers};
use crate::report::{Table, Unit};
use crate::rounds;

/// Measures every alternative once in each round, with the same text.
pub(crate) fn measure(
    peers: &mut Peers<dyn Copies>,
    rounds: usize,
    megabytes: u32,
) -> Result<Table> {
    let (file, bytes) = text(u64::from(megabytes) << 20).context("writing the text")?;
    let path: &Path = file.path();
    rounds::measure(
        &format!("{megabytes} MiB of lines from `cat` into storage"),
        Unit::BytesPerSecond,
        peers,
        rounds,
        |peer| Ok(bytes as f64 / peer.copy(path, bytes)?.as_secs_f64()),
    )
}

/// Returns a file of whole lines of 20 to 400 bytes, at most `most` bytes in total, and its length. ASCII, because
/// pm2 decodes each read separately and corrupts split characters. The content is deterministic.
fn text(most: u64) -> Result<(NamedTempFile, u64)> {
    const WORDS: &[&str] = &[
        "reading",
        "the",
        "file",
        "src/main.rs:",
        "error[E0308]:",
        "expected",
        "`u64`,",
        "found",
        "`usize`",
        "{\"type\":",
        "\"message\",",
        "\"text\":",
        "\"done\"}",
        "->",
        "ok",
        "running",
        "42",
        "tests",
        "0x7ffd3a",
        "|",
        "warning:",
        "unused",
        "variable",
        "2026-01-02T03:04:05Z",
        "INFO",
        "request",
        "took",
        "17ms",
    ];
    let mut file = tempfile::Builder::new()
        .prefix("colibri-bench-")
        .tempfile_in("/var/tmp")?;
    let mut random = fastrand::Rng::with_seed(8);
    let mut out = BufWriter::with_capacity(1 << 20, file.as_file_mut());
    let mut length = 0;
    loop {
        let length_of_line = random.usize(20..400);
        let mut line = String::with_capacity(length_of_line + 32);
        while line.len() < length_of_line {
            line.push_str(random.choice(WORDS).copied().unwrap_or_default());
            line.push(' ');
        }
        line.truncate(length_of_line - 1);
        line.push('\n');
        if length + line.len() as u64 > most {
            break;
        }
        out.write_all(line.as_bytes())?;
        length += line.len() as u64;
    }
    out.flush()?;
    drop(out);
    Ok((file, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_whole_lines_within_the_size() {
        for most in [0, 1, 1000, 100_000] {
            let (file, length) = text(most).unwrap();
            let text = std::fs::read_to_string(file.path()).unwrap();
            assert_eq!(text.len() as u64, length);
            assert!(length <= most && most - length < 400, "{length} of {most}");
            assert!(text.is_empty() || text.ends_with('\n'));
            assert!(text.lines().all(|line| (19..400).contains(&line.len())));
        }
    }
}
