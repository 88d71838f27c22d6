//! Resource limits of an agent.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::JailError;

/// Limits as written in a request or a file. An absent limit is the host's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Maximum memory of all processes together: bytes, or a text like `512M` or `2G` (powers of 1024).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "number_or_text")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<NumberOrText>"))]
    pub memory: Option<Size>,
    /// Maximum number of concurrent processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes: Option<u32>,
    /// Maximum number of busy processors, like `1.5`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "number_or_text")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<NumberOrText>"))]
    pub cpu: Option<Cpus>,
    /// Maximum number of open files of each process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u32>,
    /// Maximum time from the first start to the end of the agent: seconds, or a text like `90s`, `30m` or `8h`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "number_or_text")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<NumberOrText>"))]
    pub wall_time: Option<WallTime>,
}

impl Limits {
    /// Fills the gaps of these limits from `weaker`.
    #[must_use]
    pub fn or(self, weaker: Self) -> Self {
        Self {
            memory: self.memory.or(weaker.memory),
            processes: self.processes.or(weaker.processes),
            cpu: self.cpu.or(weaker.cpu),
            open_files: self.open_files.or(weaker.open_files),
            wall_time: self.wall_time.or(weaker.wall_time),
        }
    }

    /// Validates the limits.
    ///
    /// # Errors
    /// The first limit that is too small for any program.
    pub fn check(&self) -> Result<(), JailError> {
        at_least("memory", self.memory, Size(1 << 20))?;
        at_least("processes", self.processes, 1)?;
        at_least("cpu", self.cpu, Cpus(10))?;
        at_least("open_files", self.open_files, 8)?;
        at_least("wall_time", self.wall_time, WallTime(1))
    }

    /// Returns whether a limit applies to all processes together: memory, processes or cpu. The others apply to each
    /// process, or to the run time.
    #[must_use]
    pub fn has_jail_limits(&self) -> bool {
        self.memory.is_some() || self.processes.is_some() || self.cpu.is_some()
    }
}

/// Refuses a limit below `least`, with which no program runs.
fn at_least<T: PartialOrd + fmt::Display>(
    name: &str,
    limit: Option<T>,
    least: T,
) -> Result<(), JailError> {
    match limit {
        Some(limit) if limit < least => Err(JailError::Conflict(format!(
            "limit `{name}` is too small for any program; give at least {least}"
        ))),
        _ => Ok(()),
    }
}

/// An amount of memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Size(pub u64);

/// Units of memory, as powers of two.
const SIZE_UNITS: &[(char, u32)] = &[('T', 40), ('G', 30), ('M', 20), ('K', 10)];

impl FromStr for Size {
    type Err = JailError;

    fn from_str(text: &str) -> Result<Self, JailError> {
        let malformed = || {
            let problem = "is not a size; give bytes, or a text like 512M or 2G";
            JailError::invalid("memory", text, problem)
        };
        let upper = text.to_ascii_uppercase();
        let number = upper
            .strip_suffix("IB")
            .or(upper.strip_suffix('B'))
            .unwrap_or(&upper);
        let (number, shift) = SIZE_UNITS
            .iter()
            .find_map(|(unit, shift)| Some((number.strip_suffix(*unit)?, *shift)))
            .unwrap_or((number, 0));
        let number = parse_digits(number).ok_or_else(malformed)?;
        number
            .checked_mul(1 << shift)
            .map(Self)
            .ok_or_else(malformed)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = SIZE_UNITS
            .iter()
            .find(|(_, shift)| self.0 > 0 && self.0.is_multiple_of(1 << shift));
        match unit {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

/// A number of processors, in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cpus(pub u32);

impl FromStr for Cpus {
    type Err = JailError;

    fn from_str(text: &str) -> Result<Self, JailError> {
        match text.parse::<f64>() {
            // NaN and numbers out of range fail the comparison; the others fit exactly.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            Ok(number) if (0.0..=65_536.0).contains(&number) => {
                Ok(Self((number * 1000.0).round() as u32))
            }
            _ => {
                let problem = "is not a number of processors; give one like 2 or 0.5";
                Err(JailError::invalid("cpu", text, problem))
            }
        }
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", f64::from(self.0) / 1000.0)
    }
}

/// Maximum run time of an agent, in milliseconds. Written like `90s`, `30m` or `1h30m`; a plain number is seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WallTime(pub u64);

/// Units of time, in milliseconds. `ms` precedes `m`, its prefix.
const TIME_UNITS: &[(&str, u64)] = &[
    ("ms", 1),
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
];

impl FromStr for WallTime {
    type Err = JailError;

    fn from_str(text: &str) -> Result<Self, JailError> {
        let malformed = || {
            let problem =
                "is not a duration; give one like 90s, 30m or 1h30m, or a whole number of seconds";
            JailError::invalid("time", text, problem)
        };
        if let Some(seconds) = parse_digits(text) {
            return seconds.checked_mul(1000).map(Self).ok_or_else(malformed);
        }
        let (mut remaining, mut total) = (text, 0_u64);
        loop {
            let digits = remaining
                .find(|c: char| !c.is_ascii_digit())
                .ok_or_else(malformed)?;
            let (number, after) = remaining.split_at(digits);
            let (unit, scale) = TIME_UNITS
                .iter()
                .find(|(unit, _)| after.starts_with(unit))
                .ok_or_else(malformed)?;
            total = parse_digits(number)
                .and_then(|number| number.checked_mul(*scale))
                .and_then(|part| total.checked_add(part))
                .ok_or_else(malformed)?;
            remaining = after.get(unit.len()..).unwrap_or_default().trim_start();
            if remaining.is_empty() {
                return Ok(Self(total));
            }
        }
    }
}

impl WallTime {
    /// Returns the time as a duration.
    #[must_use]
    pub fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl fmt::Display for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, scale) = [("h", 3_600_000), ("m", 60_000), ("s", 1000)]
            .into_iter()
            .find(|(_, scale)| self.0 > 0 && self.0.is_multiple_of(*scale))
            .unwrap_or(("ms", 1));
        write!(f, "{}{unit}", self.0 / scale)
    }
}

/// Parses ASCII digits, without a sign or a blank.
fn parse_digits(text: &str) -> Option<u64> {
    text.parse()
        .ok()
        .filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

/// A JSON or TOML value: a number, or a text with a unit.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged)]
enum NumberOrText {
    Whole(u64),
    Fraction(f64),
    Text(String),
}

fn number_or_text<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err = JailError>,
{
    let text = Option::deserialize(deserializer)?.map(|value| match value {
        NumberOrText::Whole(number) => number.to_string(),
        // Debug keeps the fraction of 8.0, which is not a whole number of bytes or seconds.
        NumberOrText::Fraction(number) => format!("{number:?}"),
        NumberOrText::Text(text) => text,
    });
    let value = text.as_deref().map(str::parse).transpose();
    value.map_err(serde::de::Error::custom)
}

impl Serialize for Cpus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(f64::from(self.0) / 1000.0)
    }
}

impl Serialize for WallTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn size_cpus_and_time_parse_their_units() {
        let size = |text: &str| text.parse::<Size>().ok().map(|size| size.0);
        for (text, bytes) in [
            ("1048576", Some(1 << 20)),
            ("512M", Some(512 << 20)),
            ("512m", Some(512 << 20)),
            ("2G", Some(2 << 30)),
            ("2GiB", Some(2 << 30)),
            ("2gb", Some(2 << 30)),
            ("64K", Some(64 << 10)),
            ("10b", Some(10)),
            ("", None),
            ("G", None),
            ("-1G", None),
            ("+1G", None),
            ("1.5G", None),
            ("1 G", None),
            ("99999999T", None),
        ] {
            assert_eq!(size(text), bytes, "{text:?}");
        }
        let cpus = |text: &str| text.parse::<Cpus>().ok().map(|cpus| cpus.0);
        for (text, thousandths) in [
            ("1", Some(1000)),
            ("0.5", Some(500)),
            ("1.25", Some(1250)),
            ("0", Some(0)),
            ("-1", None),
            ("NaN", None),
            ("inf", None),
            ("99999", None),
            ("two", None),
        ] {
            assert_eq!(cpus(text), thousandths, "{text:?}");
        }
        let time = |text: &str| text.parse::<WallTime>().ok().map(|time| time.0);
        for (text, ms) in [
            ("500ms", Some(500)),
            ("90s", Some(90_000)),
            ("8h", Some(28_800_000)),
            ("1h30m", Some(5_400_000)),
            ("1h 30m", Some(5_400_000)),
            ("1d", Some(86_400_000)),
            ("", None),
            ("90", Some(90_000)),
            ("0", Some(0)),
            ("+90", None),
            ("1m30", None),
            ("18446744073709551615", None),
            ("h", None),
            ("-1s", None),
            ("1.5h", None),
            ("soon", None),
            ("99999999999999999999d", None),
        ] {
            assert_eq!(time(text), ms, "{text:?}");
        }
    }

    #[test]
    fn limits_accept_numbers_and_texts() {
        let parse = serde_json::from_str::<Limits>;
        let limits =
            parse(r#"{"memory":"2G","processes":64,"cpu":1.5,"open_files":256,"wall_time":"8h"}"#);
        let expected = Limits {
            memory: Some(Size(2 << 30)),
            processes: Some(64),
            cpu: Some(Cpus(1500)),
            open_files: Some(256),
            wall_time: Some(WallTime(28_800_000)),
        };
        assert_eq!(limits.unwrap(), expected);
        let numbers = parse(r#"{"memory":2147483648,"cpu":"1.5","wall_time":28800}"#).unwrap();
        assert_eq!(
            (numbers.memory, numbers.cpu, numbers.wall_time),
            (expected.memory, expected.cpu, expected.wall_time)
        );
        for bad in [
            r#"{"memry":1}"#,
            r#"{"memory":-1}"#,
            r#"{"memory":1.5}"#,
            r#"{"cpu":-1}"#,
            r#"{"memory":8.0}"#,
            r#"{"wall_time":1.5}"#,
            r#"{"wall_time":8.0}"#,
            r#"{"wall_time":true}"#,
            r#"{"processes":"many"}"#,
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn limit_below_minimum_is_refused() {
        let check = |text: &str| serde_json::from_str::<Limits>(text).unwrap().check();
        assert_eq!(check("{}"), Ok(()));
        for (text, name) in [
            (r#"{"memory":1000}"#, "memory"),
            (r#"{"processes":0}"#, "processes"),
            (r#"{"cpu":0}"#, "cpu"),
            (r#"{"open_files":3}"#, "open_files"),
            (r#"{"wall_time":0}"#, "wall_time"),
        ] {
            let error = check(text).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("limit `{name}` is too small")),
                "{error}"
            );
        }
    }

    proptest! {
        #[test]
        fn displayed_limit_parses_to_same_value(memory: u64, cpu in 0..65_536_000_u32, time: u64) {
            prop_assert_eq!(Size(memory).to_string().parse(), Ok(Size(memory)));
            prop_assert_eq!(Cpus(cpu).to_string().parse(), Ok(Cpus(cpu)));
            prop_assert_eq!(WallTime(time).to_string().parse(), Ok(WallTime(time)));
            let limits = Limits { memory: Some(Size(memory)), cpu: Some(Cpus(cpu)), wall_time: Some(WallTime(time)), ..Limits::default() };
            let text = serde_json::to_string(&limits).unwrap();
            prop_assert_eq!(serde_json::from_str::<Limits>(&text).unwrap(), limits);
        }
    }
}
