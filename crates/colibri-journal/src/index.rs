//! Index of a segment: one 16-byte record per chunk, with the chunk's end offset and time. Both are monotonic within an
//! index, so that a binary search finds an offset or a time.

use std::fs::{File, Metadata};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::time::{SystemTime, UNIX_EPOCH};

/// Size of a record, in bytes.
pub(crate) const RECORD_SIZE: u64 = 16;

/// One chunk: the bytes between the end of the previous record and `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IndexRecord {
    pub(crate) end: u64,
    pub(crate) at_ns: u64,
}

impl IndexRecord {
    /// Returns a record for the bytes between `last`, the last record of a segment, and `end`, with the modification time
    /// of the file; `None` if there are no such bytes.
    pub(crate) fn for_unindexed(
        last: Option<Self>,
        start: u64,
        end: u64,
        metadata: &Metadata,
    ) -> Option<Self> {
        (last.map_or(start, |record| record.end) < end).then(|| Self {
            end,
            at_ns: metadata
                .modified()
                .map_or(0, nanoseconds)
                .max(last.map_or(0, |record| record.at_ns)),
        })
    }

    /// Writes the record after `number` others; returns the prefix that ends with it.
    pub(crate) fn write(self, file: &File, number: u64) -> io::Result<ValidPrefix> {
        // Two consecutive little-endian u64.
        let fields = u128::from(self.end) | u128::from(self.at_ns) << 64;
        file.write_all_at(&fields.to_le_bytes(), number * RECORD_SIZE)?;
        Ok(ValidPrefix {
            records: number + 1,
            last: Some(self),
        })
    }

    fn from_bytes(bytes: [u8; RECORD_SIZE as usize]) -> Self {
        let fields = u128::from_le_bytes(bytes);
        Self {
            end: fields as u64,
            at_ns: (fields >> 64) as u64,
        }
    }

    /// Reads the record with this number; `None` if the file is too short.
    fn read(file: &File, number: u64) -> io::Result<Option<Self>> {
        let mut bytes = [0; RECORD_SIZE as usize];
        let complete = is_complete(file.read_exact_at(&mut bytes, number * RECORD_SIZE))?;
        Ok(complete.then(|| Self::from_bytes(bytes)))
    }
}

/// The valid prefix of an index.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ValidPrefix {
    /// Number of records.
    pub(crate) records: u64,
    pub(crate) last: Option<IndexRecord>,
}

/// Returns the longest prefix of an index that is valid for a segment with offsets `start..end`: offsets increase and do
/// not exceed `end`, and times do not decrease.
pub(crate) fn valid_prefix(file: &File, start: u64, end: u64) -> io::Result<ValidPrefix> {
    let mut file = BufReader::with_capacity(1 << 16, file);
    let (mut records, mut last) = (0, None);
    let mut bytes = [0; RECORD_SIZE as usize];
    while is_complete(file.read_exact(&mut bytes))? {
        let record = IndexRecord::from_bytes(bytes);
        let (previous_end, previous_at_ns) =
            last.map_or((start, 0), |last: IndexRecord| (last.end, last.at_ns));
        if record.end <= previous_end || record.end > end || record.at_ns < previous_at_ns {
            break;
        }
        last = Some(record);
        records += 1;
    }
    Ok(ValidPrefix { records, last })
}

/// The records on both sides of a search key.
#[derive(Debug, Default)]
pub(crate) struct Neighbours {
    pub(crate) before: Option<IndexRecord>,
    pub(crate) at_or_after: Option<IndexRecord>,
}

/// Searches the first record for which `is_before` is false. The writer may append records or truncate the index
/// concurrently.
pub(crate) fn search(
    file: &File,
    is_before: impl Fn(IndexRecord) -> bool,
) -> io::Result<Neighbours> {
    let (mut low, mut high) = (0, file.metadata()?.len() / RECORD_SIZE);
    let mut neighbours = Neighbours::default();
    while low < high {
        let middle = low + (high - low) / 2;
        match IndexRecord::read(file, middle)? {
            Some(record) if is_before(record) => {
                neighbours.before = Some(record);
                low = middle + 1;
            }
            other => {
                neighbours.at_or_after = other;
                high = middle;
            }
        }
    }
    Ok(neighbours)
}

/// Returns a time in nanoseconds since 1970; 0 for an earlier time.
pub(crate) fn nanoseconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |elapsed| {
        u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
    })
}

/// Returns whether an exact read was complete; false at the end of the file.
fn is_complete(read: io::Result<()>) -> io::Result<bool> {
    match read {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        other => other.map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_prefix_ends_at_first_invalid_record() {
        for (case, records, valid) in [
            ("none", &[][..], 0),
            ("one per chunk", &[(105, 7), (110, 8), (120, 8)], 3),
            ("log longer than index", &[(105, 7)], 1),
            ("empty chunk", &[(100, 7), (105, 8)], 0),
            ("repeated offset", &[(105, 7), (105, 8)], 1),
            ("decreasing offset", &[(110, 7), (105, 8), (120, 9)], 1),
            ("beyond the log", &[(110, 7), (121, 8)], 1),
            ("decreasing time", &[(110, 7), (120, 6)], 1),
            ("zeros", &[(105, 7), (0, 0), (0, 0)], 1),
        ] {
            let file = tempfile::tempfile().unwrap();
            for (number, (end, at_ns)) in records.iter().copied().enumerate() {
                let record = IndexRecord { end, at_ns };
                record.write(&file, number as u64).unwrap();
            }
            file.write_all_at(b"torn", records.len() as u64 * RECORD_SIZE)
                .unwrap();
            let last = records.get(..valid).and_then(<[_]>::last).copied();
            let last = last.map(|(end, at_ns)| IndexRecord { end, at_ns });
            assert_eq!(
                valid_prefix(&file, 100, 120).unwrap(),
                ValidPrefix {
                    records: valid as u64,
                    last
                },
                "{case}"
            );
        }
    }
}
