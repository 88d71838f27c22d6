//! Checks a command line and its environment against the limits of execve(2), so that the error names the argument.

use std::collections::BTreeMap;

use colibri_jail_core::{ArgumentLimit, CommandLine, CommandLineError};
use rustix::param::page_size;
use rustix::process::{Resource, getrlimit};

/// Bytes reserved for the system besides arguments and environment: program path, alignment, auxiliary vector.
const RESERVED_BYTES: usize = 8 << 10;
/// Size of the pointer to each string, in bytes.
const POINTER_BYTES: usize = size_of::<usize>();

/// Limits of execve(2).
#[derive(Debug, Clone, Copy)]
pub(crate) struct ArgumentLimits {
    /// Maximum size of one string with its NUL, in bytes; `None` if only the total is limited.
    pub(crate) string: Option<usize>,
    /// Maximum size of all strings and their pointers, in bytes.
    pub(crate) total: usize,
}

impl ArgumentLimits {
    /// Returns the limits of this host. On Linux they depend on the stack limit that agents inherit; see execve(2).
    pub(crate) fn of_host() -> Self {
        if cfg!(target_os = "linux") {
            const MIN_TOTAL_BYTES: u64 = 128 << 10;
            const MAX_TOTAL_BYTES: u64 = 6 << 20;
            let stack = getrlimit(Resource::Stack).current.unwrap_or(u64::MAX);
            let total = (stack / 4).clamp(MIN_TOTAL_BYTES, MAX_TOTAL_BYTES);
            Self {
                string: Some(32 * page_size()),
                total: usize::try_from(total).unwrap_or(usize::MAX),
            }
        } else {
            // FreeBSD: kern.argmax, on 64-bit systems.
            Self {
                string: None,
                total: 512 << 10,
            }
        }
    }
}

/// Checks a command and its environment. `words` is the confining program and its maximum number of arguments.
///
/// # Errors
/// The first limit that is exceeded.
pub(crate) fn check(
    command: &CommandLine,
    env: &BTreeMap<String, String>,
    wrapper: Option<ArgumentLimit>,
    limits: &ArgumentLimits,
) -> Result<(), CommandLineError> {
    if let Some(limit) = wrapper
        && command.args().len() + 1 > limit.max
    {
        return Err(CommandLineError::TooMany {
            count: command.args().len() + 1,
            program: limit.program.to_owned(),
            max: limit.max,
        });
    }
    let arguments = std::iter::once(command.program())
        .chain(command.args().iter().map(String::as_str))
        .map(|text| ("an argument".to_owned(), text.len()));
    // NAME=VALUE
    let variables = env.iter().map(|(name, value)| {
        let what = format!("environment variable {name:.40}");
        (what, name.len() + 1 + value.len())
    });
    let mut total = RESERVED_BYTES;
    for (what, bytes) in arguments.chain(variables) {
        if let Some(max) = limits.string
            && bytes >= max
        {
            return Err(CommandLineError::StringTooLong {
                what,
                bytes,
                max: max - 1,
            });
        }
        total += bytes + 1 + POINTER_BYTES;
    }
    match total > limits.total {
        true => Err(CommandLineError::TooLong {
            bytes: total,
            max: limits.total,
        }),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceeded_limit_is_named() {
        let most = ArgumentLimits {
            string: Some(1000),
            total: 20_000,
        };
        let limit = |max| {
            Some(ArgumentLimit {
                program: "bwrap(1)",
                max,
            })
        };
        let many = vec!["x".to_owned(); 100];
        let try_out = |args: Vec<String>, variable: usize, wrapper: Option<ArgumentLimit>| {
            let command = CommandLine::new("agent", args).unwrap();
            let env = BTreeMap::from([("V".to_owned(), "v".repeat(variable))]);
            check(&command, &env, wrapper, &most)
        };
        assert_eq!(try_out(many.clone(), 10, limit(101)), Ok(()));
        let said = |outcome: Result<(), CommandLineError>| outcome.unwrap_err().to_string();
        let shown = [
            said(try_out(many, 10, limit(100))),
            said(try_out(vec!["x".repeat(1000)], 1, None)),
            said(try_out(vec![], 998, None)),
            said(try_out(vec!["x".repeat(900); 20], 1, None)),
        ];
        insta::assert_snapshot!(shown.join("\n"));
        assert_eq!(try_out(vec!["x".repeat(999)], 997, None), Ok(()));
    }

    #[test]
    fn limits_of_the_host_agree_with_getconf() {
        let Ok(output) = std::process::Command::new("getconf")
            .arg("ARG_MAX")
            .output()
        else {
            return;
        };
        let limit: usize = String::from_utf8_lossy(&output.stdout)
            .trim()
            .parse()
            .unwrap_or(0);
        assert!(
            ArgumentLimits::of_host().total <= limit.max(128 << 10),
            "{limit}"
        );
    }
}
