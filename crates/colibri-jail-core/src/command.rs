//! A program and its arguments for execve(2), without a shell.

use std::fmt::{self, Write as _};

use serde::Serialize;

use crate::{
    CommandLineError, CredentialRule, EphemeralJail, JailPath, NetworkRule, Pid, Signal,
    is_unprintable,
};

/// Number of the descriptor by which a proxy gets the pipe for its events. Above those that the shim and the standard library
/// use.
pub const PROXY_EVENTS: u16 = 182;
/// Number of the descriptor from which bwrap(1) reads the certificate of the proxy's authority. Low, because the limit of open
/// files of the agent applies to the proxy.
pub(crate) const CA_DESCRIPTOR: u32 = 20;
/// As [`CA_DESCRIPTOR`], for all root certificates.
pub(crate) const CA_BUNDLE_DESCRIPTOR: u32 = 21;

/// Options of `colibri-proxy run`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyOptions {
    /// Credentials that the proxy adds to requests. Their keys are in its environment, see
    /// [`CredentialRule::key_variable`].
    pub credentials: Vec<CredentialRule>,
    /// Descriptor that the command gets, from which it can read the certificate of the proxy's authority, in PEM.
    pub ca: Option<u32>,
    /// Descriptor that the command gets, from which it can read the system's root certificates and that of the proxy's
    /// authority, in PEM.
    pub ca_bundle: Option<u32>,
    /// Inherited descriptor to which the proxy writes refusals, as lines of JSON.
    pub events: Option<u32>,
}

impl ProxyOptions {
    /// Returns the options for a jail whose command gets the proxy's descriptors.
    #[must_use]
    pub fn of(jail: &EphemeralJail) -> Self {
        let has_authority = jail.tls_field().is_some();
        Self {
            credentials: jail.credentials.clone(),
            ca: has_authority.then_some(CA_DESCRIPTOR),
            ca_bundle: has_authority.then_some(CA_BUNDLE_DESCRIPTOR),
            events: Some(PROXY_EVENTS.into()),
        }
    }
}

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

    /// Returns `outer SELF`: the words of `outer` before those of this command.
    #[must_use]
    pub fn after(self, outer: Self, words: impl IntoIterator<Item = String>) -> Self {
        let mut args = outer.args;
        args.extend(words);
        self.wrapped_by(&outer.program, args)
    }

    /// Returns `program args… SELF`. The strings contain no NUL byte.
    pub(crate) fn wrapped_by(self, program: &str, mut args: Vec<String>) -> Self {
        args.push(self.program);
        args.extend(self.args);
        Self::unchecked(program, args)
    }

    /// Runs this command under `proxy`, colibri-proxy, which connects it to the destinations in `allow`:
    /// `proxy run RULE… -- SELF`.
    #[must_use]
    pub fn filtered(self, proxy: &JailPath, allow: &[NetworkRule]) -> Self {
        self.filtered_with(proxy, allow, &ProxyOptions::default())
    }

    /// Runs this command under `proxy` with options: `proxy run OPTION… RULE… -- SELF`.
    #[must_use]
    pub fn filtered_with(
        self,
        proxy: &JailPath,
        allow: &[NetworkRule],
        options: &ProxyOptions,
    ) -> Self {
        let mut args = vec!["run".to_owned()];
        for (option, descriptor) in [
            ("--ca", options.ca),
            ("--ca-bundle", options.ca_bundle),
            ("--events", options.events),
        ] {
            if let Some(descriptor) = descriptor {
                args.extend([option.to_owned(), descriptor.to_string()]);
            }
        }
        for credential in &options.credentials {
            args.extend(["--credential".to_owned(), credential.to_string()]);
        }
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
    let is_hidden = |c: char| is_unprintable(c) && !matches!(c, '\n' | '\t');
    if !word.is_empty() && word.chars().all(plain) {
        f.write_str(word)
    } else if word.chars().any(is_hidden) {
        // A terminal would obey or not show it.
        f.write_str("$'")?;
        for c in word.chars() {
            match c {
                '\'' | '\\' => write!(f, "\\{c}")?,
                c if is_hidden(c) => {
                    for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                        write!(f, "\\{byte:03o}")?;
                    }
                }
                c => f.write_char(c)?,
            }
        }
        f.write_str("'")
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
    fn proxy_options_precede_the_rules() {
        let command = CommandLine::new("sh", ["-c", "x"]).unwrap();
        let options = ProxyOptions {
            credentials: vec!["TOKEN@a=Authorization: Bearer {}".parse().unwrap()],
            ca: Some(10),
            ca_bundle: Some(11),
            events: Some(12),
        };
        let allow = ["GET https://a/x/*", "b:1"].map(|rule| rule.parse().unwrap());
        let proxy = "/p".parse().unwrap();
        let filtered = command.filtered_with(&proxy, &allow, &options);
        assert_eq!(
            filtered.to_string(),
            "/p run --ca 10 --ca-bundle 11 --events 12 --credential 'TOKEN@a:443=authorization: Bearer {}' 'GET https://a/x/*' b:1 -- sh -c x"
        );
    }

    #[test]
    fn display_quotes_for_a_posix_shell() {
        for (words, shown) in [
            (["/bin/sh", "-c", "echo hi"], "/bin/sh -c 'echo hi'"),
            (["a", "", "it's"], "a '' 'it'\\''s'"),
            (["a", "$x", "*"], "a '$x' '*'"),
            (
                ["a", "\u{1b}[2J'\\", "b\u{202e}"],
                "a $'\\033[2J\\'\\\\' $'b\\342\\200\\256'",
            ),
        ] {
            let [program, args @ ..] = words;
            assert_eq!(CommandLine::new(program, args).unwrap().to_string(), shown);
        }
    }
}
