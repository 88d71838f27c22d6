//! Records of sixteen bytes: where a chunk ends, and when it came.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

pub(crate) const RECORD: u64 = 16;

/// One chunk: everything from the record before it up to `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) end: u64,
    pub(crate) at_ns: u64,
}

impl Record {
    pub(crate) fn write(self, file: &File, number: u64) -> io::Result<()> {
        let mut bytes = [0; RECORD as usize];
        let (end, at_ns) = bytes.split_at_mut(8);
        end.copy_from_slice(&self.end.to_le_bytes());
        at_ns.copy_from_slice(&self.at_ns.to_le_bytes());
        file.write_all_at(&bytes, number * RECORD)
    }

    pub(crate) fn read(file: &File, number: u64) -> io::Result<Self> {
        let mut end = [0; 8];
        let mut at_ns = [0; 8];
        file.read_exact_at(&mut end, number * RECORD)?;
        file.read_exact_at(&mut at_ns, number * RECORD + 8)?;
        Ok(Self {
            end: u64::from_le_bytes(end),
            at_ns: u64::from_le_bytes(at_ns),
        })
    }
}

/// How many whole records a file holds.
pub(crate) fn count(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.len() / RECORD)
}

/// How many records from the front make sense for a segment with offsets `start..end`: each ends behind
/// the one before it, and none behind the segment.
pub(crate) fn sound(file: &File, start: u64, end: u64) -> io::Result<(u64, Option<Record>)> {
    let mut last = None;
    let mut previous = start;
    let mut number = 0;
    let whole = count(file)?;
    while number < whole {
        let record = Record::read(file, number)?;
        if record.end <= previous || record.end > end {
            break;
        }
        previous = record.end;
        last = Some(record);
        number += 1;
    }
    Ok((number, last))
}

/// Number of the first record for which `before` does not hold; records are sorted by both fields, up to
/// steps of the clock.
pub(crate) fn partition(file: &File, before: impl Fn(Record) -> bool) -> io::Result<u64> {
    let (mut low, mut high) = (0, count(file)?);
    while low < high {
        let middle = low + (high - low) / 2;
        if before(Record::read(file, middle)?) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}
