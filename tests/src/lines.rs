//! Verifiable output: numbered lines, each with a checksum, generated from a seed.

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
        let most = if random.u8(..) < 4 { 30_000 } else { 200 };
        let mut line = vec![0; random.usize(..most)];
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

/// Counts written output.
#[derive(Default)]
pub struct Counter {
    hasher: Hasher,
    bytes: u64,
}

impl Counter {
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
    /// It wrote everything that it reported, and no more.
    Whole,
    /// It was killed: one write more than reported is possible.
    Killed,
    /// Its shim was killed, with the content of the pipe: less than reported is possible.
    WithItsShim,
}

/// Missing or damaged bytes, and repeated bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Difference {
    pub lost: u64,
    pub repeated: u64,
}

/// Compares received bytes with the writer's report.
pub fn check(received: &[u8], written: Written, end: End) -> Difference {
    let mut found = Difference::default();
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
            found.repeated += line.len() as u64;
        } else {
            // A line has at least 12 bytes; the byte count below is more exact.
            damaged += (number - next) * 12;
            next = number + 1;
        }
    }
    let once = received.len() as u64 - found.repeated;
    let counted = usize::try_from(written.bytes).unwrap();
    let same = match end {
        End::Whole => received.len() == counted && hash(received) == written.checksum,
        End::Killed => received
            .get(..counted)
            .is_some_and(|counted| hash(counted) == written.checksum),
        End::WithItsShim => true,
    };
    if end != End::WithItsShim {
        found.lost = written.bytes.saturating_sub(once);
    }
    found.lost = found.lost.max(damaged);
    if !same && found == Difference::default() {
        found.lost = 1;
    }
    found
}

/// Returns the number of a line with a valid checksum.
fn number(line: &[u8]) -> Option<u64> {
    let (front, checksum) = line
        .strip_suffix(b"\n")?
        .split_at_checked(line.len().checked_sub(10)?)?;
    let checksum = u32::from_str_radix(std::str::from_utf8(checksum.get(1..)?).ok()?, 16).ok()?;
    let digits = front.iter().rposition(|byte| *byte == b' ')? + 1;
    let number = std::str::from_utf8(front.get(digits..)?).ok()?;
    (hash(front) == checksum)
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
        assert_eq!(check(&all, written, End::Whole), Difference::default());
        let cut = &all[..all.len() - 5];
        assert_eq!(check(cut, written, End::Killed).lost, 5);
        assert_eq!(
            check(cut, written, End::WithItsShim),
            Difference::default(),
            "the content of the pipe may be lost with the shim"
        );
        let more = counter.add(b"x");
        assert_eq!(check(&all, more, End::Whole).lost, 1);
        assert_eq!(
            check(&[&all[..], b"x"].concat(), written, End::Killed).lost,
            0
        );
        let twice = [&lines[..9], &lines[8..]].concat().concat();
        assert_eq!(
            check(&twice, written, End::Whole),
            Difference {
                lost: 0,
                repeated: lines[8].len() as u64
            }
        );
        for end in [End::Whole, End::Killed, End::WithItsShim] {
            let hole = [&lines[..9], &lines[10..]].concat().concat();
            assert!(check(&hole, written, end).lost >= 12, "{end:?}");
            let mut wrong = all.clone();
            wrong[0] ^= 1;
            assert!(check(&wrong, written, end).lost > 0, "{end:?}");
        }
    }
}
