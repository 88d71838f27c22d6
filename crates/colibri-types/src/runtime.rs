//! The dialects that agents speak.

use std::fmt;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde::de::value::{self, StrDeserializer};
use serde::{Deserialize, Serialize};

/// The dialect in which an agent reports events and reads commands. Exhaustive on purpose: each runtime needs its own code.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum AgentRuntime {
    /// `pi --mode json` or `--mode rpc`.
    Pi,
    /// `zot --json` or `zot rpc`.
    Zot,
    /// Any other program: its state follows from activity and exit only.
    #[default]
    Generic,
}

/// A name is not one of the known ones.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown {what} {name:?}; give one of: {}", known.join(", "))]
pub struct UnknownName {
    what: &'static str,
    name: String,
    known: &'static [&'static str],
}

impl UnknownName {
    /// Parses a name as serde does. `what` and `known` are for the error.
    pub(crate) fn parse<T: DeserializeOwned>(
        what: &'static str,
        name: &str,
        known: &'static [&'static str],
    ) -> Result<T, Self> {
        T::deserialize(StrDeserializer::<value::Error>::new(name)).map_err(|_| Self {
            what,
            name: name.chars().take(60).collect(),
            known,
        })
    }
}

impl AgentRuntime {
    /// All runtimes.
    pub const ALL: &'static [Self] = &[Self::Pi, Self::Zot, Self::Generic];
    /// Names of all runtimes, in the order of [`AgentRuntime::ALL`].
    pub const NAMES: &'static [&'static str] = &["pi", "zot", "generic"];

    /// Returns the name, as in requests and settings.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pi => "pi",
            Self::Zot => "zot",
            Self::Generic => "generic",
        }
    }
}

impl fmt::Display for AgentRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for AgentRuntime {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        UnknownName::parse("runtime", name, Self::NAMES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtime_name_equals_its_serialized_form() {
        assert_eq!(AgentRuntime::ALL.len(), AgentRuntime::NAMES.len());
        for (runtime, name) in AgentRuntime::ALL.iter().zip(AgentRuntime::NAMES) {
            assert_eq!(serde_json::to_value(runtime).unwrap(), *name);
            assert_eq!(name.parse(), Ok(*runtime));
            assert_eq!(runtime.to_string(), *name);
        }
        assert_eq!(
            "aider".parse::<AgentRuntime>().unwrap_err().to_string(),
            "unknown runtime \"aider\"; give one of: pi, zot, generic"
        );
    }
}
