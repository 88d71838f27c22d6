//! Verifiable output: lines generated from a seed, each with a number and a checksum.

use crc32fast::{Hasher, hash};

/// Generates the lines of one output.
pub struct Lines {
    random: fastrand::Rng,
    number: u64,
}

impl Lines {
    pub fn new(seed: u64) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            number: 0,
        }
    }

    /// Returns the next line: text or binary data, occasionally long, then its number and checksum.
    pub fn line(&mut self) -> Vec<u8> {
        let random = &mut self.random;
        let max_length = if random.u8(..) < 4 { 30_000 } else { 200 };
        let mut line = vec![0; random.usize(..max_length)];
        if random.bool() {
            random.fill(&mut line);
            line.iter_mut()
                .filter(|byte| **byte == b'\n')
                .for_each(|byte| *byte = 0);
        } else {
            line.fill_with(|| random.alphanumeric() as u8);
        }
        line.extend_from_slice(format!(" {}", self.number).as_bytes());
        line.extend_from_slice(format!(" {:08x}\n", hash(&line)).as_bytes());
        self.number += 1;
        line
    }
}

/// Length and checksum of the output that a writer has written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    pub bytes: u64,
    pub checksum: u32,
}

/// Computes length and checksum of written output.
#[derive(Default)]
pub struct Counter {
    hasher: Hasher,
    bytes: u64,
}

impl Counter {
    /// Adds bytes and returns the totals.
    pub fn add(&mut self, bytes: &[u8]) -> Written {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Written {
            bytes: self.bytes,
            checksum: self.hasher.clone().finalize(),
        }
    }
}

/// How the writer of an output ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It exited: its report is exact.
    Whole,
    /// It was killed: it may have written once more after its last report.
    Killed,
    /// It was killed with its shim: the reported bytes that were in the pipe are lost.
    WithItsShim,
}

/// Numbers of missing or damaged bytes, and of repeated bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Difference {
    pub lost: u64,
    pub repeated: u64,
}

/// Compares received bytes with the report of their writer.
pub fn compare(received: &[u8], written: Written, end: End) -> Difference {
    let mut difference = Difference::default();
    let (mut next, mut damaged) = (0, 0);
    for line in received.split_inclusive(|byte| *byte == b'\n') {
        let number = match number(line) {
            Some(number) => number,
            // Truncated output may end within a line.
            None if line.last() != Some(&b'\n') && end != End::Whole => break,
            None => {
                damaged += line.len() as u64;
                continue;
            }
        };
        if number < next {
            difference.repeated += line.len() as u64;
        } else {
            // A line has at least 12 bytes. The comparison of lengths below is exact if nothing else is wrong.
            damaged += (number - next) * 12;
            next = number + 1;
        }
    }
    let distinct = received.len() as u64 - difference.repeated;
    let reported = usize::try_from(written.bytes).unwrap();
    let is_equal = match end {
        End::Whole => received.len() == reported && hash(received) == written.checksum,
        End::Killed => received
            .get(..reported)
            .is_some_and(|reported| hash(reported) == written.checksum),
        End::WithItsShim => true,
    };
    if end != End::WithItsShim {
        difference.lost = written.bytes.saturating_sub(distinct);
    }
    difference.lost = difference.lost.max(damaged);
    if !is_equal && difference == Difference::default() {
        difference.lost = 1;
    }
    difference
}

/// Returns the number of a line with a valid checksum.
fn number(line: &[u8]) -> Option<u64> {
    let (content, checksum) = line
        .strip_suffix(b"\n")?
        .split_at_checked(line.len().checked_sub(10)?)?;
    let checksum = u32::from_str_radix(std::str::from_utf8(checksum.get(1..)?).ok()?, 16).ok()?;
    let digits = content.iter().rposition(|byte| *byte == b' ')? + 1;
    let number = std::str::from_utf8(content.get(digits..)?).ok()?;
    (hash(content) == checksum)
        .then(|| number.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_loss_is_counted() {
        let mut lines = Lines::new(7);
        let lines: Vec<Vec<u8>> = (0..50).map(|_| lines.line()).collect();
        let all = lines.concat();
        let mut counter = Counter::default();
        let written = counter.add(&all);
        assert_eq!(compare(&all, written, End::Whole), Difference::default());
        let truncated = &all[..all.len() - 5];
        assert_eq!(compare(truncated, written, End::Killed).lost, 5);
        assert_eq!(
            compare(truncated, written, End::WithItsShim),
            Difference::default(),
            "the content of the pipe may be lost with the shim"
        );
        let longer = counter.add(b"x");
        assert_eq!(compare(&all, longer, End::Whole).lost, 1);
        assert_eq!(
            compare(&[&all[..], b"x"].concat(), written, End::Killed).lost,
            0
        );
        let repeated = [&lines[..9], &lines[8..]].concat().concat();
        assert_eq!(
            compare(&repeated, written, End::Whole),
            Difference {
                lost: 0,
                repeated: lines[8].len() as u64
            }
        );
        for end in [End::Whole, End::Killed, End::WithItsShim] {
            let incomplete = [&lines[..9], &lines[10..]].concat().concat();
            assert!(compare(&incomplete, written, end).lost >= 12, "{end:?}");
            let mut corrupt = all.clone();
            corrupt[0] ^= 1;
            assert!(compare(&corrupt, written, end).lost > 0, "{end:?}");
        }
    }
}
