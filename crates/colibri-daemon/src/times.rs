//! Conversion of times: nanoseconds on disk, milliseconds in the glasspane, RFC 3339 on the wire.

use jiff::Timestamp;

/// Formats nanoseconds since 1970 as RFC 3339 in UTC, with milliseconds.
pub(crate) fn format_ns(ns: u64) -> String {
    format_ms(ns / 1_000_000)
}

/// Formats milliseconds since 1970 as RFC 3339 in UTC.
pub(crate) fn format_ms(ms: u64) -> String {
    let timestamp = i64::try_from(ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok());
    format!("{:.3}", timestamp.unwrap_or(Timestamp::MAX))
}

/// Parses an RFC 3339 time into nanoseconds since 1970. Earlier times become 0; times beyond the range of `u64` become its
/// maximum.
///
/// # Errors
/// The text is not an RFC 3339 time.
pub(crate) fn parse_ns(text: &str) -> Result<u64, jiff::Error> {
    let ns = text.parse::<Timestamp>()?.as_nanosecond().max(0);
    Ok(u64::try_from(ns).unwrap_or(u64::MAX))
}

/// Returns the current time in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_formatted_in_utc_and_parsed_in_any_zone() {
        assert_eq!(
            format_ns(1_700_000_000_123_456_789),
            "2023-11-14T22:13:20.123Z"
        );
        assert_eq!(format_ms(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(
            parse_ns("2023-11-14T23:13:20+01:00").unwrap(),
            1_700_000_000_000_000_000
        );
        assert_eq!(parse_ns("1960-01-01T00:00:00Z").unwrap(), 0);
        assert_eq!(parse_ns("9999-01-01T00:00:00Z").unwrap(), u64::MAX);
        assert!(parse_ns("yesterday").is_err());
        assert!(format_ms(u64::MAX).ends_with('Z'));
    }
}
