//! Compares the command of a backend with the operation. All functions are pure.

use colibri_jail_core::{CommandLine, JailError, JailOp};
use colibri_priv::PrivError;

use crate::ViolationKind;
use crate::cases::FIRST_AGENT;

/// The kind of a violation, and its message.
pub(super) type Verdict = (ViolationKind, String);

/// Returns the command to judge from the results of the engine and the backend; `None` if the backend correctly refuses
/// the operation.
pub(super) fn command_to_judge<'a>(
    op: &JailOp,
    plain: &Result<CommandLine, JailError>,
    result: &'a Result<CommandLine, PrivError>,
) -> Result<Option<&'a CommandLine>, Verdict> {
    match (plain, result) {
        (_, Ok(command)) => Ok(Some(command)),
        (_, Err(PrivError::Unsupported(_))) if is_optional(op) => Ok(None),
        (Ok(_), Err(_)) => Err((
            ViolationKind::RefusesOperation,
            "refuses an operation that the engine supports".to_owned(),
        )),
        (Err(refusal), Err(PrivError::Jail(error))) if error == refusal => Ok(None),
        (Err(refusal), Err(_)) => Err((
            ViolationKind::HidesEngineError,
            format!("replaces the engine's error: {refusal}"),
        )),
    }
}

/// Returns whether a backend may refuse the operation. Without it, agents run with the usual confinement or do not run.
/// Listing needs no root (jls(8)).
fn is_optional(op: &JailOp) -> bool {
    match op {
        JailOp::List | JailOp::HostCommand { .. } | JailOp::Monitor { .. } | JailOp::Clean(_) => {
            true
        }
        JailOp::Create { jail, .. } => jail.is_extended(),
        _ => false,
    }
}

/// The violations of a command, and its words before the agent's.
pub(super) struct Judgement {
    pub(super) violations: Vec<Verdict>,
    pub(super) prefix: Option<Vec<String>>,
}

/// Judges a command. `known_prefix` contains the words before another agent in the same operation.
pub(super) fn judge(
    command: &CommandLine,
    op: &JailOp,
    plain: Option<&CommandLine>,
    known_prefix: Option<Vec<String>>,
) -> Judgement {
    let mut violations = Vec::new();
    let words = words(command);
    if !command.program().starts_with('/') {
        violations.push((
            ViolationKind::RelativeProgram,
            format!(
                "the program {:?} is not an absolute path",
                command.program()
            ),
        ));
    }
    let agent = op.agent().map(self::words).unwrap_or_default();
    let plain = plain.map(self::words).unwrap_or_default();
    let plain_prefix = &plain[..plain.len().saturating_sub(agent.len())];
    let (checked, prefix) = match known_prefix {
        // The first agent is recognized by its program.
        None if !agent.is_empty() => match split_first_agent(&words) {
            Some((prefix, suffix)) => {
                violations.extend(compare(&agent, suffix));
                (prefix.clone(), Some(prefix))
            }
            None => {
                let is_line = |word: &String| word.contains(' ') && word.contains(FIRST_AGENT);
                let last = &words[words.len().saturating_sub(1)..];
                violations.push(if words.iter().any(is_line) {
                    (
                        ViolationKind::JoinsArguments,
                        "joins the agent's arguments to a line".to_owned(),
                    )
                } else {
                    compare(&agent, last).unwrap_or((
                        ViolationKind::ChangesArgument,
                        "changes the agent's program".to_owned(),
                    ))
                });
                // The arguments of the other agents contain shells.
                if agent == [FIRST_AGENT] {
                    violations.extend(shell_violation(&words, plain_prefix));
                }
                return Judgement {
                    violations,
                    prefix: None,
                };
            }
        },
        None => (words.clone(), None),
        Some(prefix) => {
            violations.extend(compare_suffix(&prefix, &agent, &words));
            (prefix.clone(), Some(prefix))
        }
    };
    violations.extend(shell_violation(&checked, plain_prefix));
    // The command contains the engine's command, or else every value of the operation.
    if !contains_plain(&words, &plain, plain_prefix) {
        let contains = |words: &[String], value: &str| {
            let suffixes = [format!("={value}"), format!(":{value}")];
            let has_value = |word: &String| {
                *word == value || suffixes.iter().any(|suffix| word.ends_with(suffix))
            };
            words.iter().any(has_value)
        };
        let lost: Vec<_> = values(op)
            .into_iter()
            .filter(|(_, value)| !contains(&checked, value))
            .collect();
        // Prefers a value that the engine's command contains, because others can be implied by it.
        let example = lost.iter().find(|(_, value)| contains(&plain, value));
        if let Some((name, value)) = example.or(lost.first()) {
            violations.push((
                ViolationKind::LosesValue,
                format!("loses the value of {name}, {value:?}"),
            ));
        }
    }
    Judgement { violations, prefix }
}

/// Returns a violation if the command has a shell with a script that the engine's command does not have.
fn shell_violation(words: &[String], plain: &[String]) -> Option<Verdict> {
    (shell_scripts(words) > shell_scripts(plain)).then(|| {
        let message = "puts a shell with a script before the command".to_owned();
        (ViolationKind::UsesShell, message)
    })
}

/// Returns the number of shells that get a script.
fn shell_scripts(words: &[String]) -> usize {
    let is_script_option = |word: &String| {
        word.strip_prefix('-')
            .is_some_and(|letters| !letters.starts_with('-') && letters.contains('c'))
    };
    words
        .iter()
        .enumerate()
        .filter(|(_, word)| is_shell(without_command(word)))
        .filter(|(index, _)| words[index + 1..].iter().take(3).any(is_script_option))
        .count()
}

fn is_shell(word: &str) -> bool {
    const SHELLS: &[&str] = &[
        "sh", "bash", "dash", "zsh", "ksh", "mksh", "csh", "tcsh", "fish", "ash", "busybox",
    ];
    SHELLS.contains(&word.rsplit('/').next().unwrap_or(word))
}

/// Returns whether the command contains the engine's command, except for the agent, which [`compare`] checks.
fn contains_plain(words: &[String], plain: &[String], plain_prefix: &[String]) -> bool {
    !plain.is_empty()
        && (words.ends_with(plain)
            || (!plain_prefix.is_empty()
                && words
                    .windows(plain_prefix.len())
                    .any(|window| window == plain_prefix)))
}

/// Returns program and arguments in one list.
pub(super) fn words(command: &CommandLine) -> Vec<String> {
    std::iter::once(command.program())
        .chain(command.args().iter().map(String::as_str))
        .map(str::to_owned)
        .collect()
}

/// Splits the words at the first agent. The prefix includes `command=` of jail(8), which precedes the program in the same
/// word.
fn split_first_agent(words: &[String]) -> Option<(Vec<String>, &[String])> {
    let index = words.iter().rposition(|word| word.ends_with(FIRST_AGENT))?;
    let before = words.get(index)?.strip_suffix(FIRST_AGENT)?;
    let mut prefix = words[..index].to_vec();
    match before {
        "" => {}
        "command=" => prefix.push(before.to_owned()),
        _ => return None,
    }
    Some((prefix, &words[index..]))
}

/// Judges the words after a prefix that is known from another agent.
fn compare_suffix(prefix: &[String], agent: &[String], words: &[String]) -> Option<Verdict> {
    let is_joined = prefix.last().is_some_and(|last| last == "command=");
    let prefix = &prefix[..prefix.len() - usize::from(is_joined)];
    let mut expected = agent.to_vec();
    if let (true, Some(program)) = (is_joined, expected.first_mut()) {
        program.insert_str(0, "command=");
    }
    match words.strip_prefix(prefix) {
        Some(suffix) => compare(&expected, suffix),
        None if words.ends_with(&expected) => Some((
            ViolationKind::DependsOnAgent,
            format!("the arguments before the agent's depend on it; for another agent: {prefix:?}"),
        )),
        None => compare(&expected, &words[prefix.len().min(words.len())..]),
    }
}

/// Classifies a difference between the agent's arguments and those in the command.
fn compare(expected: &[String], actual: &[String]) -> Option<Verdict> {
    let expected: Vec<&str> = expected.iter().map(|word| without_command(word)).collect();
    let actual: Vec<&str> = actual.iter().map(|word| without_command(word)).collect();
    if expected == actual {
        return None;
    }
    let sorted = |words: &[&str]| {
        let mut words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        words.sort();
        words
    };
    let line = expected.join(" ");
    let unquoted = |words: &[&str]| -> Vec<String> {
        let quotes = ['\'', '"', '\\'];
        words.iter().map(|word| word.replace(quotes, "")).collect()
    };
    let lost = || {
        expected
            .iter()
            .find(|word| count(&actual, word) < count(&expected, word))
    };
    let is_shorter = actual.len() < expected.len();
    let is_longer = actual.len() > expected.len();
    let joins = || {
        unquoted(&actual)
            .join(" ")
            .contains(&unquoted(&[&line]).concat())
    };
    let splits = || {
        let words = actual.iter().flat_map(|word| word.split_whitespace());
        line.split_whitespace().eq(words)
    };
    let (kind, verb) = if is_longer && actual.starts_with(&expected) {
        let appended = &actual[expected.len()..];
        let message = format!("appends {appended:?} to the agent's arguments");
        return Some((ViolationKind::AppendsArgument, message));
    } else if sorted(&expected) == sorted(&actual) {
        (ViolationKind::ReordersArguments, "reorders")
    } else if is_shorter && is_subsequence(&actual, &expected) {
        let word = lost().copied().unwrap_or_default();
        let message = format!("drops the agent's argument {word:?}");
        return Some((ViolationKind::DropsArgument, message));
    } else if is_shorter && joins() {
        (ViolationKind::JoinsArguments, "joins")
    } else if is_longer && splits() {
        (ViolationKind::SplitsArgument, "splits")
    } else if actual.len() == expected.len() && unquoted(&expected) == unquoted(&actual) {
        (ViolationKind::QuotesArgument, "quotes")
    } else {
        (ViolationKind::ChangesArgument, "changes")
    };
    Some((kind, format!("{verb} the agent's arguments")))
}

/// Removes `command=` of jail(8) before a program.
fn without_command(word: &str) -> &str {
    word.strip_prefix("command=").unwrap_or(word)
}

fn count(words: &[&str], word: &str) -> usize {
    words.iter().filter(|other| **other == word).count()
}

fn is_subsequence(part: &[&str], all: &[&str]) -> bool {
    let mut remaining = all.iter();
    part.iter().all(|word| remaining.any(|other| other == word))
}

/// Returns the values of an operation except its agent, with their names.
pub(super) fn values(op: &JailOp) -> Vec<(&'static str, String)> {
    let mut values = Vec::new();
    let mut add = |name, value: Option<String>| values.extend(value.map(|value| (name, value)));
    match op {
        JailOp::Attach {
            name,
            user,
            workdir,
            ..
        } => {
            add("jail", Some(name.to_string()));
            add("user", user.as_ref().map(ToString::to_string));
            add("workdir", workdir.as_ref().map(ToString::to_string));
        }
        JailOp::Create { jail, workdir, .. } => {
            add("jail", Some(jail.name.to_string()));
            add("path", Some(jail.path.to_string()));
            add("ip4", Some(jail.ip4.to_string()));
            add("user", jail.user.as_ref().map(ToString::to_string));
            add("workdir", workdir.as_ref().map(ToString::to_string));
            for mount in &jail.mounts {
                add("mount source", Some(mount.source.to_string()));
                add("mount target", Some(mount.target.to_string()));
            }
            add("hostname", jail.hostname.as_ref().map(ToString::to_string));
            for destination in &jail.allow {
                add("allow", Some(destination.to_string()));
            }
            for path in &jail.masked {
                add("masked path", Some(path.to_string()));
            }
        }
        JailOp::Signal { jail, pids, signal } => {
            add("jail", jail.as_ref().map(ToString::to_string));
            add("signal", Some(signal.to_string()));
            for pid in pids {
                add("pid", Some(pid.to_string()));
            }
        }
        JailOp::Remove { name } => add("jail", Some(name.to_string())),
        JailOp::HostCommand { command, .. } | JailOp::Monitor { command, .. } => {
            for word in words(command) {
                add("command", Some(word));
            }
        }
        _ => {}
    }
    values
}
