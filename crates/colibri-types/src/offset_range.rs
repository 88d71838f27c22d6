//! Ranges of the output of an agent.

use serde::{Deserialize, Serialize};

/// A part of an output journal: offsets in bytes. In JSON it is an array of both offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(inline))]
#[serde(from = "(u64, u64)", into = "(u64, u64)")]
pub struct OffsetRange {
    /// Offset of the first byte.
    pub start: u64,
    /// Offset after the last byte.
    pub end: u64,
}

impl From<(u64, u64)> for OffsetRange {
    fn from((start, end): (u64, u64)) -> Self {
        Self { start, end }
    }
}

impl From<OffsetRange> for (u64, u64) {
    fn from(range: OffsetRange) -> Self {
        (range.start, range.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_an_array_of_both_offsets() {
        let range = OffsetRange { start: 3, end: 70 };
        assert_eq!(serde_json::to_string(&range).unwrap(), "[3,70]");
        assert_eq!(
            serde_json::from_str::<OffsetRange>("[3,70]").unwrap(),
            range
        );
        assert!(serde_json::from_str::<OffsetRange>("[3]").is_err());
    }
}
