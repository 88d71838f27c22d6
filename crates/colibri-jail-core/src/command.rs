//! A program and its arguments for execve(2), without a shell.

use std::fmt;

use serde::Serialize;

use crate::{CommandLineError, Destination, JailPath, Pid, Signal};

/// A program and its arguments. None contains a NUL byte, and the program is not empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct CommandLine {
    program: String,
    args: Vec<String>,
}

impl CommandLine {
    /// Validates a command for execve(2) and the wrapping programs. An empty program is refused because jail(8) skips
    /// an empty command and would create a jail without a process.
    ///
    /// # Errors
    /// The program is empty, or a string contains a NUL byte.
    pub fn new<A: Into<String>>(
        program: impl Into<String>,
        args: impl IntoIterator<Item = A>,
    ) -> Result<Self, CommandLineError> {
        let program = program.into();
        let args: Vec<String> = args.into_iter().map(Into::into).collect();
        if program.is_empty() {
            return Err(CommandLineError::EmptyProgram);
        }
        if program.contains('\0') {
            return Err(CommandLineError::Nul("the program".to_owned()));
        }
        if let Some(position) = args.iter().position(|arg| arg.contains('\0')) {
            return Err(CommandLineError::Nul(format!("argument {}", position + 1)));
        }
        Ok(Self { program, args })
    }

    /// Creates a command from strings that contain no NUL byte.
    pub(crate) fn unchecked(program: &str, args: Vec<String>) -> Self {
        Self {
            program: program.to_owned(),
            args,
        }
    }

    /// Returns `program args… SELF`. The strings contain no NUL byte.
    pub(crate) fn wrapped_by(self, program: &str, mut args: Vec<String>) -> Self {
        args.push(self.program);
        args.extend(self.args);
        Self::unchecked(program, args)
    }

    /// Runs this command under `proxy`, colibri-proxy, which connects it to the destinations in `allow`:
    /// `proxy run DESTINATION… -- SELF`.
    #[must_use]
    pub fn filtered(self, proxy: &JailPath, allow: &[Destination]) -> Self {
        let mut args = vec!["run".to_owned()];
        args.extend(allow.iter().map(ToString::to_string));
        args.push("--".to_owned());
        self.wrapped_by(proxy.as_str(), args)
    }

    /// Returns a command line of kill(1).
    pub(crate) fn kill(program: &str, signal: Signal, pids: &[Pid]) -> Self {
        let mut args = vec!["-s".to_owned(), signal.to_string()];
        args.extend(pids.iter().map(ToString::to_string));
        Self::unchecked(program, args)
    }

    /// Runs this command through another program: `program args… SELF`. For privilege backends.
    ///
    /// # Errors
    /// As [`CommandLine::new`], for `program` and `args`.
    pub fn prefixed<A: Into<String>>(
        self,
        program: impl Into<String>,
        args: impl IntoIterator<Item = A>,
    ) -> Result<Self, CommandLineError> {
        let prefix = Self::new(program, args)?;
        Ok(self.wrapped_by(&prefix.program, prefix.args))
    }

    /// Returns the program: a path, or a name to search in `PATH`.
    #[must_use]
    pub fn program(&self) -> &str {
        &self.program
    }

    /// Returns the arguments after the program.
    #[must_use]
    pub fn args(&self) -> &[String] {
        &self.args
    }

    /// Returns program and arguments, owned.
    #[must_use]
    pub fn into_parts(self) -> (String, Vec<String>) {
        (self.program, self.args)
    }
}

/// Quotes the words for a POSIX shell.
impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        quote(&self.program, f)?;
        for arg in &self.args {
            f.write_str(" ")?;
            quote(arg, f)?;
        }
        Ok(())
    }
}

fn quote(word: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        f.write_str(word)
    } else {
        write!(f, "'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_that_execve_rejects_is_refused() {
        let none: [&str; 0] = [];
        assert_eq!(
            CommandLine::new("", none),
            Err(CommandLineError::EmptyProgram)
        );
        assert_eq!(
            CommandLine::new("a\0b", none),
            Err(CommandLineError::Nul("the program".into()))
        );
        assert_eq!(
            CommandLine::new("a", ["b", "\0"]),
            Err(CommandLineError::Nul("argument 2".into()))
        );
        assert!(CommandLine::new("-", ["", "-x", "--", "\n"]).is_ok());
    }

    #[test]
    fn display_quotes_for_a_posix_shell() {
        for (words, shown) in [
            (["/bin/sh", "-c", "echo hi"], "/bin/sh -c 'echo hi'"),
            (["a", "", "it's"], "a '' 'it'\\''s'"),
            (["a", "$x", "*"], "a '$x' '*'"),
        ] {
            let [program, args @ ..] = words;
            assert_eq!(CommandLine::new(program, args).unwrap().to_string(), shown);
        }
    }
}
