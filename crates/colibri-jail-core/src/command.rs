//! A program and its arguments, as execve(2) takes them: no shell is ever between.

use std::fmt;

use serde::Serialize;

use crate::CommandLineError;

/// A program and its arguments. Neither holds a NUL byte, and the program is not empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct CommandLine {
    program: String,
    args: Vec<String>,
}

impl CommandLine {
    /// Checks what execve(2) and the wrapping programs could not carry. An empty program is refused
    /// because jail(8) skips an empty command and would make a jail with nothing in it.
    ///
    /// # Errors
    /// The program is empty, or one of the words holds a NUL byte.
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

    /// Puts `program` and `front` before this command. All of them are known to be free of NUL.
    pub(crate) fn behind(self, program: &str, front: Vec<String>) -> Self {
        let mut args = front;
        args.push(self.program);
        args.extend(self.args);
        Self {
            program: program.to_owned(),
            args,
        }
    }

    pub(crate) fn trusted(program: &str, args: Vec<String>) -> Self {
        Self {
            program: program.to_owned(),
            args,
        }
    }

    /// Runs this command through another program: `program args… THIS`. For privilege backends.
    ///
    /// # Errors
    /// As [`CommandLine::new`], for the words in front.
    pub fn prefixed<A: Into<String>>(
        self,
        program: impl Into<String>,
        args: impl IntoIterator<Item = A>,
    ) -> Result<Self, CommandLineError> {
        let front = Self::new(program, args)?;
        Ok(self.behind(&front.program, front.args))
    }

    /// The program: a path, or a name to be searched in `PATH`.
    #[must_use]
    pub fn program(&self) -> &str {
        &self.program
    }

    /// The arguments after the program's own name.
    #[must_use]
    pub fn args(&self) -> &[String] {
        &self.args
    }

    /// Program and arguments, owned.
    #[must_use]
    pub fn into_parts(self) -> (String, Vec<String>) {
        (self.program, self.args)
    }
}

/// One line that a POSIX shell reads back as the same words.
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
    fn what_cannot_be_executed_is_refused() {
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
    fn display_quotes_for_a_shell() {
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
