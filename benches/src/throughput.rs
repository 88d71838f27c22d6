//! Throughput of the stored output of a program that writes at full speed.

use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use tempfile::NamedTempFile;

use crate::peers::{Peers, StorePeer};
use crate::report::{Table, Unit};
use crate::rounds;

/// Measures every alternative once in each round, with the same text.
pub(crate) fn measure(
    peers: &mut Peers<dyn StorePeer>,
    rounds: usize,
    megabytes: u32,
) -> Result<Table> {
    let (file, bytes) = create_text(u64::from(megabytes) << 20).context("writing the text")?;
    let path: &Path = file.path();
    rounds::measure(
        &format!("{megabytes} MiB of lines from `cat` into storage"),
        Unit::BytesPerSecond,
        peers,
        rounds,
        |peer| Ok(bytes as f64 / peer.store(path, bytes)?.as_secs_f64()),
    )
}

/// Creates a file of whole lines of 20 to 400 bytes, at most `max_bytes` in total. Returns the file and its length. The
/// content is deterministic. It is ASCII, because pm2 decodes each read separately and corrupts split characters.
fn create_text(max_bytes: u64) -> Result<(NamedTempFile, u64)> {
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
    let mut writer = BufWriter::with_capacity(1 << 20, file.as_file_mut());
    let mut length = 0;
    loop {
        let line_length = random.usize(20..400);
        let mut line = String::with_capacity(line_length + 32);
        while line.len() < line_length {
            line.push_str(random.choice(WORDS).copied().unwrap_or_default());
            line.push(' ');
        }
        line.truncate(line_length - 1);
        line.push('\n');
        if length + line.len() as u64 > max_bytes {
            break;
        }
        writer.write_all(line.as_bytes())?;
        length += line.len() as u64;
    }
    writer.flush()?;
    drop(writer);
    Ok((file, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_whole_lines_within_the_size() {
        for max_bytes in [0, 1, 1000, 100_000] {
            let (file, length) = create_text(max_bytes).unwrap();
            let text = std::fs::read_to_string(file.path()).unwrap();
            assert_eq!(text.len() as u64, length);
            let unused = max_bytes.checked_sub(length);
            assert!(
                unused.is_some_and(|bytes| bytes < 400),
                "{length} of {max_bytes}"
            );
            assert!(text.is_empty() || text.ends_with('\n'));
            assert!(text.lines().all(|line| (19..400).contains(&line.len())));
        }
    }
}
