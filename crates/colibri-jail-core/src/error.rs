//! Validation errors, each with a hint. Values are untrusted and shown escaped. Messages name fields of
//! [`crate::JailConfig`] and [`crate::Limits`] in backquotes, so that a command line can replace them by its flags.

/// Error for a program or arguments that execve(2) does not accept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandLineError {
    /// The program is empty.
    #[error("the program name is empty; give a program to run")]
    EmptyProgram,
    /// A string contains a NUL byte.
    #[error("{0} contains a NUL byte, which execve(2) cannot pass; remove it")]
    Nul(String),
    /// One argument or variable exceeds the length that execve(2) accepts.
    #[error(
        "{what} has {bytes} bytes, more than the {max} that execve(2) takes in one string; pass it in a file or on standard input"
    )]
    StringTooLong {
        /// The argument or the variable.
        what: String,
        /// Its length, in bytes.
        bytes: usize,
        /// Maximum length, in bytes.
        max: usize,
    },
    /// Arguments and environment together exceed the length that execve(2) accepts.
    #[error(
        "arguments and environment have {bytes} bytes, more than the {max} that execve(2) takes here (ARG_MAX); pass them in a file or on standard input"
    )]
    TooLong {
        /// Their length, including one pointer for each string, in bytes.
        bytes: usize,
        /// Maximum length, in bytes.
        max: usize,
    },
    /// The wrapping program accepts fewer arguments.
    #[error(
        "{count} arguments exceed the {max} that {program} accepts, including its options; pass them in a file or on standard input"
    )]
    TooMany {
        /// Number of arguments.
        count: usize,
        /// The wrapping program.
        program: String,
        /// Maximum number of arguments.
        max: usize,
    },
}

/// Error for an invalid or unsupported confinement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JailError {
    /// A value is invalid.
    #[error("{what} {value:?} {problem}")]
    Invalid {
        /// The kind of the value, for example `jail name`.
        what: &'static str,
        /// The value.
        value: String,
        /// The cause and a hint.
        problem: String,
    },
    /// A value is longer than a program or the kernel accepts.
    #[error("the {what} has {length} bytes, at most {max} are allowed; shorten it")]
    TooLong {
        /// The kind of the value.
        what: &'static str,
        /// Its length, in bytes.
        length: usize,
        /// Maximum length, in bytes.
        max: usize,
    },
    /// A field conflicts with another one or applies to nothing: the message.
    #[error("{0}")]
    Conflict(String),
    /// The engine does not support an operation or a value: the message.
    #[error("{0}")]
    Unsupported(String),
    /// Neither the engine nor the host can enforce a requested limit.
    #[error(
        "limit `{name}` cannot be enforced: {why}, or accept the missing limit with `best_effort`"
    )]
    LimitUnenforced {
        /// The field of the limit.
        name: &'static str,
        /// The reason, as `CAUSE; HINT`.
        why: String,
    },
}

impl JailError {
    pub(crate) fn no_proxy() -> Self {
        Self::Unsupported(
            "`allow` needs the program colibri-proxy, which was not found; install it beside colibri-daemon, or remove `allow`".to_owned(),
        )
    }

    pub(crate) fn invalid(
        what: &'static str,
        value: impl ToString,
        problem: impl Into<String>,
    ) -> Self {
        Self::Invalid {
            what,
            value: value.to_string(),
            problem: problem.into(),
        }
    }
}

/// Refuses a value of more than `max` bytes.
pub(crate) fn check_length(what: &'static str, value: &str, max: usize) -> Result<(), JailError> {
    match value.len() {
        length if length > max => Err(JailError::TooLong { what, length, max }),
        _ => Ok(()),
    }
}
