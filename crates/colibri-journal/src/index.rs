//! Records of sixteen bytes: where a chunk ends, and when it came. In one index both never fall, so that a
//! binary search finds either.

use std::fs::{File, Metadata};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) const RECORD: u64 = 16;

/// One chunk: everything from the record before it up to `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) end: u64,
    pub(crate) at_ns: u64,
}

impl Record {
    /// A segment's bytes up to `end` that `last`, its last record, does not cover: they have the file's
    /// own time. `None` where there are no such bytes.
    pub(crate) fn of_tail(
        last: Option<Self>,
        start: u64,
        end: u64,
        log: &Metadata,
    ) -> Option<Self> {
        (last.map_or(start, |record| record.end) < end).then(|| Self {
            end,
            at_ns: log
                .modified()
                .map_or(0, nanoseconds)
                .max(last.map_or(0, |record| record.at_ns)),
        })
    }

    pub(crate) fn write(self, file: &File, number: u64) -> io::Result<()> {
        let mut bytes = [0; RECORD as usize];
        let (end, at_ns) = bytes.split_at_mut(8);
        end.copy_from_slice(&self.end.to_le_bytes());
        at_ns.copy_from_slice(&self.at_ns.to_le_bytes());
        file.write_all_at(&bytes, number * RECORD)
    }

    fn from_bytes(bytes: [u8; RECORD as usize]) -> Self {
        // The fields lie one behind the other in little-endian order, so as one number they do too.
        let both = u128::from_le_bytes(bytes);
        Self {
            end: both as u64,
            at_ns: (both >> 64) as u64,
        }
    }

    /// `None` where the file ends before the record does.
    fn read(file: &File, number: u64) -> io::Result<Option<Self>> {
        let mut bytes = [0; RECORD as usize];
        whole(file.read_exact_at(&mut bytes, number * RECORD))
            .map(|found| found.map(|()| Self::from_bytes(bytes)))
    }
}

/// How many records from the front make sense for a segment with offsets `start..end`, and the last of
/// them: each ends behind the one before it, none came before it, and none ends behind the segment.
pub(crate) fn sound(file: &File, start: u64, end: u64) -> io::Result<(u64, Option<Record>)> {
    let mut file = BufReader::with_capacity(1 << 16, file);
    let (mut count, mut last) = (0, None);
    let mut bytes = [0; RECORD as usize];
    while whole(file.read_exact(&mut bytes))?.is_some() {
        let record = Record::from_bytes(bytes);
        let (previous, since) = last.map_or((start, 0), |last: Record| (last.end, last.at_ns));
        if record.end <= previous || record.end > end || record.at_ns < since {
            break;
        }
        last = Some(record);
        count += 1;
    }
    Ok((count, last))
}

/// The first record for which `before` does not hold, and the one before it. The writer may add records
/// meanwhile, or cut them off where it repairs.
pub(crate) fn partition(
    file: &File,
    before: impl Fn(Record) -> bool,
) -> io::Result<(Option<Record>, Option<Record>)> {
    let (mut low, mut high) = (0, file.metadata()?.len() / RECORD);
    let (mut last_before, mut first) = (None, None);
    while low < high {
        let middle = low + (high - low) / 2;
        match Record::read(file, middle)? {
            Some(record) if before(record) => {
                last_before = Some(record);
                low = middle + 1;
            }
            found => {
                first = found;
                high = middle;
            }
        }
    }
    Ok((last_before, first))
}

/// Nanoseconds since 1970; a clock before that counts as 1970.
pub(crate) fn nanoseconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| {
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    })
}

/// A read that met the end of the file found nothing whole.
fn whole(read: io::Result<()>) -> io::Result<Option<()>> {
    match read {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        other => other.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_records_that_make_sense_are_kept() {
        for (case, records, kept) in [
            ("none", &[][..], 0),
            ("one a chunk", &[(105, 7), (110, 8), (120, 8)], 3),
            ("more in the log", &[(105, 7)], 1),
            ("ends where it starts", &[(100, 7), (105, 8)], 0),
            ("does not advance", &[(105, 7), (105, 8)], 1),
            ("goes back", &[(110, 7), (105, 8), (120, 9)], 1),
            ("behind the log", &[(110, 7), (121, 8)], 1),
            ("older than the one before", &[(110, 7), (120, 6)], 1),
            ("zeros", &[(105, 7), (0, 0), (0, 0)], 1),
        ] {
            let file = tempfile::tempfile().unwrap();
            for (number, (end, at_ns)) in records.iter().copied().enumerate() {
                let record = Record { end, at_ns };
                record.write(&file, number as u64).unwrap();
            }
            file.write_all_at(b"torn", records.len() as u64 * RECORD)
                .unwrap();
            let last = records.get(..kept).and_then(<[_]>::last).copied();
            let last = last.map(|(end, at_ns)| Record { end, at_ns });
            assert_eq!(
                sound(&file, 100, 120).unwrap(),
                (kept as u64, last),
                "{case}"
            );
        }
    }
}
