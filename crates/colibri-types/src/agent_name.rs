//! Names of agents.

use std::fmt;
use std::str::FromStr;

use colibri_jail_core::is_unprintable;

/// Maximum length of an agent's name, in characters.
pub const MAX_NAME: usize = 64;

/// A valid name of an agent: 1 to 64 characters, no control or invisible characters, not only whitespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AgentName(String);

/// Why a text is not a valid name of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AgentNameError {
    /// It is empty or consists of whitespace.
    #[error("it is empty or only whitespace; give at least one visible character, or no name")]
    Blank,
    /// It is too long.
    #[error("it is longer than {MAX_NAME} characters; give a shorter one")]
    TooLong,
    /// It contains a control or invisible character.
    #[error("it holds a control or invisible character; remove it")]
    Control,
}

impl AgentName {
    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AgentName {
    type Err = AgentNameError;

    fn from_str(text: &str) -> Result<Self, AgentNameError> {
        if text.chars().all(|c| c.is_whitespace() || is_unprintable(c)) {
            Err(AgentNameError::Blank)
        } else if text.chars().count() > MAX_NAME {
            Err(AgentNameError::TooLong)
        } else if text.chars().any(is_unprintable) {
            Err(AgentNameError::Control)
        } else {
            Ok(Self(text.to_owned()))
        }
    }
}

impl fmt::Display for AgentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_rules_are_enforced() {
        let longest = "ä".repeat(MAX_NAME);
        let too_long = "x".repeat(MAX_NAME + 1);
        for (text, expected) in [
            ("", Err(AgentNameError::Blank)),
            (" \t\u{3000}", Err(AgentNameError::Blank)),
            ("\u{200b} \u{feff}", Err(AgentNameError::Blank)),
            ("a\nb", Err(AgentNameError::Control)),
            ("a\u{1b}[2J", Err(AgentNameError::Control)),
            ("a\u{9b}", Err(AgentNameError::Control)),
            ("a\0", Err(AgentNameError::Control)),
            ("a\u{200b}", Err(AgentNameError::Control)),
            ("a\u{e0041}", Err(AgentNameError::Control)),
            (too_long.as_str(), Err(AgentNameError::TooLong)),
            (longest.as_str(), Ok(())),
            ("night shift", Ok(())),
            (" x ", Ok(())),
        ] {
            let parsed = text.parse::<AgentName>();
            assert_eq!(
                parsed.map(|name| assert_eq!(name.as_str(), text)),
                expected,
                "{text:?}"
            );
        }
    }
}
