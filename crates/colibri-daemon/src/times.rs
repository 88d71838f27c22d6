//! Times: nanoseconds on disk, milliseconds in the glasspane, RFC 3339 on the wire.

use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;

/// RFC 3339 with Z, to the millisecond.
pub(crate) fn from_ns(ns: u64) -> String {
    from_ms(ns / 1_000_000)
}

/// RFC 3339 with Z.
pub(crate) fn from_ms(ms: u64) -> String {
    let timestamp = i64::try_from(ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok());
    format!("{:.3}", timestamp.unwrap_or(Timestamp::MAX))
}

/// Nanoseconds since 1970 of an RFC 3339 time; times before that are 0, those that do not fit the largest.
pub(crate) fn to_ns(text: &str) -> Result<u64, jiff::Error> {
    let ns = text.parse::<Timestamp>()?.as_nanosecond().max(0);
    Ok(u64::try_from(ns).unwrap_or(u64::MAX))
}

/// Now, in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_utc_and_read_in_any_zone() {
        assert_eq!(
            from_ns(1_700_000_000_123_456_789),
            "2023-11-14T22:13:20.123Z"
        );
        assert_eq!(from_ms(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(
            to_ns("2023-11-14T23:13:20+01:00").unwrap(),
            1_700_000_000_000_000_000
        );
        assert_eq!(to_ns("1960-01-01T00:00:00Z").unwrap(), 0);
        assert_eq!(to_ns("9999-01-01T00:00:00Z").unwrap(), u64::MAX);
        assert!(to_ns("yesterday").is_err());
        assert!(from_ms(u64::MAX).ends_with('Z'));
    }
}
