//! Parsers of option values.

use std::str::FromStr;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use colibri_client::{ResolveError, WallTime, refuse_blank};
use jiff::Timestamp;

/// Parses a time, or an age before now.
pub(super) fn since(text: &str) -> Result<Timestamp, String> {
    crate::logs::since(text, Timestamp::now())
}

/// Returns a parser of one of `names`.
pub(super) fn one_of<T: FromStr + Clone + Send + Sync + 'static>(
    names: &'static [&'static str],
) -> impl TypedValueParser<Value = T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(|name| name.parse::<T>())
}

/// Parses a value whose error is a message.
pub(super) fn parsed<T: FromStr<Err = String>>(text: &str) -> Result<T, String> {
    text.parse()
}

/// Refuses an empty agent selector before any request is sent: it is usually an unset shell variable.
pub(super) fn agent(text: &str) -> Result<String, ResolveError> {
    refuse_blank(text)?;
    Ok(text.to_owned())
}

/// Parses a duration like `500ms`, `5s` or `1h30m`; a plain number is seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(time) = text.parse::<WallTime>() {
        return Ok(time.duration());
    }
    text.parse::<jiff::SignedDuration>()
        .ok()
        .and_then(|duration| Duration::try_from(duration).ok())
        .ok_or_else(|| {
            "give a duration like 500ms, 5s or 1h30m, or a whole number of seconds".to_owned()
        })
}

/// Parses an age like `7d` or `12h` into the time so long before now; saturates. The unit is required, because a plain
/// `7` is ambiguous and older agents are deleted.
pub(super) fn age(text: &str) -> Result<Timestamp, String> {
    if text.parse::<u64>().is_ok() {
        return Err("give an age with a unit, like 7d, 12h or 30m".to_owned());
    }
    let age = duration(text).map_err(|_| "give an age like 7d, 12h or 30m".to_owned())?;
    Ok(Timestamp::now().checked_sub(age).unwrap_or(Timestamp::MIN))
}
