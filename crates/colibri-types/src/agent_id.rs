//! Ids of agents.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Characters of a generated id, without look-alikes. The letters come first.
const ALPHABET: &[u8] = b"abcdefghjkmnpqrstuvwxyz23456789";
/// Number of letters at the start of [`ALPHABET`].
const LETTERS: usize = 23;
/// Length of a generated id, in characters.
const GENERATED_LENGTH: usize = 10;
/// Maximum length of an id, in characters.
const MAX_LENGTH: usize = 32;

/// An agent's id: lower-case letters and digits, safe as a file name and in a jail's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct AgentId(String);

/// A text is not an agent id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is not an agent id; give one of lower-case letters and digits, as list-agents shows them"
)]
pub struct AgentIdError(String);

impl AgentId {
    /// Generates an id from random numbers; `random_below(n)` returns a number below `n`. The caller checks that the
    /// id is free. The first character is a letter, so that an id never reads as a number.
    #[must_use]
    pub fn generate(mut random_below: impl FnMut(usize) -> usize) -> Self {
        let id = (0..GENERATED_LENGTH)
            .map(|position| {
                random_below(if position == 0 {
                    LETTERS
                } else {
                    ALPHABET.len()
                })
            })
            .filter_map(|index| ALPHABET.get(index).map(|byte| char::from(*byte)))
            .collect();
        Self(id)
    }

    /// Returns the id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AgentId {
    type Err = AgentIdError;

    fn from_str(text: &str) -> Result<Self, AgentIdError> {
        let valid = (1..=MAX_LENGTH).contains(&text.len())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(AgentIdError(text.chars().take(40).collect()))
        }
    }
}

impl TryFrom<String> for AgentId {
    type Error = AgentIdError;

    fn try_from(text: String) -> Result<Self, AgentIdError> {
        text.parse()
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_that_could_leave_a_directory_is_refused() {
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "A",
            "a b",
            "a\0",
            "a-b",
            &"a".repeat(MAX_LENGTH + 1),
        ] {
            assert!(bad.parse::<AgentId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn generated_id_is_valid_and_starts_with_a_letter() {
        assert!(ALPHABET[..LETTERS].iter().all(u8::is_ascii_lowercase));
        for seed in 0..1000_usize {
            let mut state = seed;
            let id = AgentId::generate(|bound| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 33) % bound
            });
            assert_eq!(id.as_str().len(), GENERATED_LENGTH);
            assert_eq!(id.as_str().parse::<AgentId>(), Ok(id.clone()));
            assert!(id.as_str().starts_with(|c: char| c.is_ascii_lowercase()));
        }
    }
}
