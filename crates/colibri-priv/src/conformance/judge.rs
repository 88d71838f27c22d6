//! Compares what came out with what was meant. Pure.

use colibri_jail_core::{Bubblewrap, CommandLine, JailEngine, JailError, JailOp};

use super::cases::FIRST_AGENT;
use super::{Broken, scripts};
use crate::PrivError;

/// A broken promise in words.
pub(super) type Verdict = (Broken, String);

/// Whether there is a command to be looked at, where the engine says this and the backend that.
pub(super) fn outcome<'a>(
    op: &JailOp,
    plain: &Result<CommandLine, JailError>,
    came: &'a Result<CommandLine, PrivError>,
) -> Result<Option<&'a CommandLine>, Verdict> {
    match (plain, came) {
        (_, Ok(command)) => Ok(Some(command)),
        // To list needs no root (jls(8)), so a backend may have no way to do it.
        (_, Err(PrivError::NoVerb { .. })) if may_lack(op) => Ok(None),
        // Nothing less confined runs where a backend says that it makes no such jail.
        (_, Err(PrivError::HelperSetup)) => Ok(None),
        (Ok(_), Err(_)) => Err((Broken::Refuses, "refuses what the engine can do".to_owned())),
        (Err(refusal), Err(PrivError::Jail(passed_on))) if passed_on == refusal => Ok(None),
        (Err(refusal), Err(_)) => Err((
            Broken::Reworded,
            format!("changes the engine's refusal, which is: {refusal}"),
        )),
    }
}

/// To unmount and to limit is for those who make jails with mounts and limits.
fn may_lack(op: &JailOp) -> bool {
    matches!(
        op,
        JailOp::List | JailOp::Unmount { .. } | JailOp::Limit { .. } | JailOp::Unlimit { .. }
    )
}

/// What is wrong with a command, and what stands before the agent's words in it.
pub(super) struct Judged {
    pub(super) broken: Vec<Verdict>,
    pub(super) front: Option<Vec<String>>,
}

/// Judges a command. `front` is what stood before the agent's words when the agent was another.
pub(super) fn command(
    came: &CommandLine,
    op: &JailOp,
    engine: &JailEngine,
    plain: Option<&CommandLine>,
    front: Option<Vec<String>>,
) -> Judged {
    let mut broken = Vec::new();
    let words = words(came);
    if !came.program().starts_with('/') {
        broken.push((
            Broken::Relative,
            format!("the program {:?} is no absolute path", came.program()),
        ));
    }
    let agent = match op {
        JailOp::Attach { command, .. } | JailOp::Create { command, .. } => self::words(command),
        _ => Vec::new(),
    };
    let engines = plain.map(self::words).unwrap_or_default();
    let engines_front = &engines[..engines.len().saturating_sub(agent.len())];
    let (own, front) = match front {
        // The first agent is known by its program, which is like nothing else.
        None if !agent.is_empty() => match split_first_agent(&words) {
            Some((own, behind)) => {
                broken.extend(compare(&agent, behind));
                (own.clone(), Some(own))
            }
            None => {
                let line = |word: &String| word.contains(' ') && word.contains(FIRST_AGENT);
                let last = &words[words.len().saturating_sub(1)..];
                broken.push(if words.iter().any(line) {
                    (
                        Broken::Joins,
                        "joins the agent's words to a line".to_owned(),
                    )
                } else {
                    compare(&agent, last)
                        .unwrap_or((Broken::Changes, "changes the agent's program".to_owned()))
                });
                // Words of other agents may name a shell themselves.
                if agent == [FIRST_AGENT] {
                    broken.extend(shell(&words, engines_front));
                }
                return Judged {
                    broken,
                    front: None,
                };
            }
        },
        None => (words.clone(), None),
        Some(front) => {
            broken.extend(behind_front(&front, &agent, &words));
            (front.clone(), Some(front))
        }
    };
    broken.extend(shell(&own, engines_front));
    // Either the engine's own command is there, or the operation is in words of the backend's own.
    if !ends_with_engine(&words, &engines, &agent) {
        let holds = |words: &[String], value: &str| {
            let ends = [format!("={value}"), format!(":{value}")];
            let carries =
                |word: &String| *word == value || ends.iter().any(|end| word.ends_with(end));
            words.iter().any(carries)
        };
        let lost: Vec<_> = all_values(op, engine)
            .into_iter()
            .filter(|(_, value)| !holds(&own, value))
            .collect();
        // A word that the engine's own command has tells more than one that it does without.
        let telling = lost.iter().find(|(_, value)| holds(&engines, value));
        if let Some((name, value)) = telling.or(lost.first()) {
            broken.push((Broken::Loses, format!("loses {name} {value:?} on the way")));
        }
    }
    Judged { broken, front }
}

/// A shell with a script, where the engine has none of its own.
fn shell(words: &[String], engine: &[String]) -> Option<Verdict> {
    (scripts(words) > scripts(engine)).then(|| {
        let what = "puts a shell with a script in front".to_owned();
        (Broken::Shell, what)
    })
}

/// Whether the command is the engine's behind something. What is wrong in the agent's own words is another's
/// to find.
fn ends_with_engine(words: &[String], engine: &[String], agent: &[String]) -> bool {
    let own = &engine[..engine.len().saturating_sub(agent.len())];
    !engine.is_empty()
        && (words.ends_with(engine)
            || (!own.is_empty() && words.windows(own.len()).any(|window| window == own)))
}

/// Program and arguments in one list.
pub(super) fn words(command: &CommandLine) -> Vec<String> {
    std::iter::once(command.program())
        .chain(command.args().iter().map(String::as_str))
        .map(str::to_owned)
        .collect()
}

/// What stands before the first agent, the beginning of its own word included, and what is behind.
fn split_first_agent(words: &[String]) -> Option<(Vec<String>, &[String])> {
    let place = words.iter().rposition(|word| word.ends_with(FIRST_AGENT))?;
    let before = words.get(place)?.strip_suffix(FIRST_AGENT)?;
    // jail(8) takes the program in this word; anything else before it is a change.
    match before {
        "" => Some((words[..place].to_vec(), &words[place..])),
        "command=" => {
            let mut front = words[..place].to_vec();
            front.push(before.to_owned());
            Some((front, &words[place..]))
        }
        _ => None,
    }
}

/// Judges words whose front is known from another agent.
fn behind_front(front: &[String], agent: &[String], words: &[String]) -> Option<Verdict> {
    let joined = front.last().is_some_and(|last| last == "command=");
    let known = &front[..front.len() - usize::from(joined)];
    let mut expected = agent.to_vec();
    if let (true, Some(program)) = (joined, expected.first_mut()) {
        program.insert_str(0, "command=");
    }
    match words.strip_prefix(known) {
        Some(behind) => compare(&expected, behind),
        None if words.ends_with(&expected) => Some((
            Broken::Leaks,
            format!(
                "puts words of the agent's, or because of them, in front; for another agent that is {known:?}"
            ),
        )),
        None => compare(&expected, &words[known.len().min(words.len())..]),
    }
}

/// Names what happened to the agent's words.
fn compare(given: &[String], came: &[String]) -> Option<Verdict> {
    let given: Vec<&str> = given.iter().map(|word| without_command(word)).collect();
    let came: Vec<&str> = came.iter().map(|word| without_command(word)).collect();
    if given == came {
        return None;
    }
    let sorted = |words: &[&str]| {
        let mut words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        words.sort();
        words
    };
    let line = given.join(" ");
    let bare = |words: &[&str]| -> Vec<String> {
        let quotes = ['\'', '"', '\\'];
        words.iter().map(|word| word.replace(quotes, "")).collect()
    };
    let lost = || {
        given
            .iter()
            .find(|word| count(&came, word) < count(&given, word))
    };
    Some(if came.len() > given.len() && came.starts_with(&given) {
        let more = &came[given.len()..];
        (
            Broken::Appends,
            format!("appends {more:?} to the agent's words"),
        )
    } else if sorted(&given) == sorted(&came) {
        (Broken::Reorders, "reorders the agent's words".to_owned())
    } else if came.len() < given.len() && is_subsequence(&came, &given) {
        let word = lost().copied().unwrap_or_default();
        (Broken::Drops, format!("drops the agent's word {word:?}"))
    } else if came.len() < given.len() && bare(&came).join(" ").contains(&bare(&[&line]).concat()) {
        (Broken::Joins, "joins the agent's words".to_owned())
    } else if came.len() > given.len()
        && line
            .split_whitespace()
            .eq(came.iter().flat_map(|word| word.split_whitespace()))
    {
        (Broken::Splits, "splits the agent's words".to_owned())
    } else if came.len() == given.len() && bare(&given) == bare(&came) {
        (Broken::Quotes, "quotes the agent's words".to_owned())
    } else {
        (Broken::Changes, "changes the agent's words".to_owned())
    })
}

/// The program in a parameter of jail(8), so that messages show the word that was given.
fn without_command(word: &str) -> &str {
    word.strip_prefix("command=").unwrap_or(word)
}

fn count(words: &[&str], word: &str) -> usize {
    words.iter().filter(|other| **other == word).count()
}

fn is_subsequence(some: &[&str], all: &[&str]) -> bool {
    let mut rest = all.iter();
    some.iter().all(|word| rest.any(|other| other == word))
}

/// What an operation says besides its agent.
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
        JailOp::Create {
            name,
            path,
            ip4,
            user,
            workdir,
            setup,
            command: _,
        } => {
            add("jail", Some(name.to_string()));
            add("path", Some(path.to_string()));
            add("ip4", Some(ip4.to_string()));
            add("user", user.as_ref().map(ToString::to_string));
            add("workdir", workdir.as_ref().map(ToString::to_string));
            for mount in &setup.mounts {
                add("mount source", Some(mount.source.to_string()));
                add("mount target", Some(mount.target.to_string()));
            }
            add("hostname", setup.hostname.as_ref().map(ToString::to_string));
            for destination in &setup.allow {
                add("allow", Some(destination.to_string()));
            }
        }
        JailOp::Signal { jail, pids, signal } => {
            add("jail", jail.as_ref().map(ToString::to_string));
            add("signal", Some(signal.to_string()));
            for pid in pids {
                add("pid", Some(pid.to_string()));
            }
        }
        JailOp::Remove { name } | JailOp::Unlimit { name } => {
            add("jail", Some(name.to_string()));
        }
        JailOp::Limit { name, .. } => add("jail", Some(name.to_string())),
        JailOp::Unmount { target } => add("target", Some(target.to_string())),
        JailOp::List => {}
    }
    values
}

/// The same, and what the engine itself is to do.
fn all_values(op: &JailOp, engine: &JailEngine) -> Vec<(&'static str, String)> {
    let mut values = values(op);
    if let (JailOp::Create { .. }, JailEngine::Bubblewrap(Bubblewrap { hidden, .. })) = (op, engine)
    {
        values.extend(
            hidden
                .iter()
                .map(|path| ("hidden directory", path.to_string())),
        );
    }
    values
}
