//! Validation errors, each with a hint. Values are untrusted and shown escaped. Messages name fields of
//! [`crate::JailConfig`] and [`crate::Limits`] in backquotes, so that a command line can replace them by its flags.

use std::fmt;

/// Error for a program or arguments that execve(2) or the wrapping program does not accept: the message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CommandLineError(String);

impl CommandLineError {
    /// Creates an error from a message with a hint.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// Error for an invalid or unsupported confinement: the message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct JailError(String);

impl JailError {
    /// Creates an error from a message with a hint.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// Creates the error of an invalid value. `what` is the kind of the value, `problem` the cause and a hint.
    pub(crate) fn invalid(what: &str, value: impl ToString, problem: impl fmt::Display) -> Self {
        Self(format!("{what} {:?} {problem}", value.to_string()))
    }
}

/// Refuses a value of more than `max` bytes.
pub(crate) fn check_length(what: &str, value: &str, max: usize) -> Result<(), JailError> {
    match value.len() {
        length if length > max => Err(JailError(format!(
            "the {what} has {length} bytes, at most {max} are allowed; shorten it"
        ))),
        _ => Ok(()),
    }
}
