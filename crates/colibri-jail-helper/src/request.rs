//! The words of a request, read by the grammar of docs/helper-protocol.md and no other: fixed order, each
//! option once, its value in a word of its own. Every value becomes a checked type here.

use std::fmt;

use colibri_jail_core::{
    CommandLine, CommandLineError, Ip4Policy, JailError, JailName, JailPath, JailUser, Pid, Signal,
};

use crate::fixed::SEARCH;
use crate::log::plain;

/// What jails that are made begin with, and jails that are entered do not.
const OWN: &str = "colibri-";
/// More than any daemon hides, or any agent has processes that need a signal at once.
const MOST: usize = 1024;

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    Attach {
        jail: JailName,
        run: Run,
    },
    Create {
        jail: JailName,
        path: JailPath,
        ip4: Ip4Policy,
        hide: Vec<JailPath>,
        run: Run,
    },
    Signal {
        jail: Option<JailName>,
        signal: Signal,
        pids: Vec<u32>,
    },
    Remove {
        jail: JailName,
    },
    Check,
}

/// What is to run in a jail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) user: Option<JailUser>,
    pub(crate) workdir: Option<JailPath>,
    pub(crate) command: CommandLine,
}

/// Why the words are no request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("no verb; give attach, create, signal, remove or check")]
    NoVerb,
    #[error("unknown verb {0:?}; give attach, create, signal, remove or check")]
    Verb(String),
    #[error("word {0} is not UTF-8; write it so")]
    NotText(usize),
    #[error("{0} is missing; docs/helper-protocol.md has the order of the words")]
    Missing(&'static str),
    #[error("word {0:?} is not expected there; docs/helper-protocol.md has the order of the words")]
    Unexpected(String),
    #[error("more than {MOST} times {0}; give fewer")]
    TooMany(&'static str),
    #[error("--pid {0:?} is not a process id; give digits, from 2 up")]
    Pid(String),
    #[error("--signal {0:?} is not a name without SIG, as TERM")]
    Signal(String),
    #[error(
        "{0} does not begin with {OWN}, as every jail that is made does; to enter a jail that exists, use attach"
    )]
    NotOwn(JailName),
    #[error("{0} begins with {OWN}: it belongs to one agent, and is entered by no other")]
    Own(JailName),
    #[error("program {0:?} is neither an absolute, normal path nor a plain name")]
    Program(String),
    #[error(transparent)]
    Value(#[from] JailError),
    #[error(transparent)]
    Command(#[from] CommandLineError),
}

/// The words not read yet.
struct Words<'a>(&'a [String]);

impl<'a> Words<'a> {
    fn optional(&mut self, name: &'static str) -> Result<Option<&'a str>, RequestError> {
        match self.0 {
            [word, value, rest @ ..] if word == name => {
                self.0 = rest;
                Ok(Some(value))
            }
            [word] if word == name => Err(RequestError::Missing(name)),
            _ => Ok(None),
        }
    }

    fn required(&mut self, name: &'static str) -> Result<&'a str, RequestError> {
        self.optional(name)?.ok_or(RequestError::Missing(name))
    }

    fn repeated(&mut self, name: &'static str) -> Result<Vec<&'a str>, RequestError> {
        let mut values = Vec::new();
        while let Some(value) = self.optional(name)? {
            values.push(value);
            if values.len() > MOST {
                return Err(RequestError::TooMany(name));
            }
        }
        Ok(values)
    }

    fn run(&mut self) -> Result<Run, RequestError> {
        let user = self.optional("--user")?.map(str::parse).transpose()?;
        let workdir = self.optional("--workdir")?.map(str::parse).transpose()?;
        match self.0 {
            [dashes, program, args @ ..] if dashes == "--" => {
                self.0 = &[];
                let command = CommandLine::new(program, args)?;
                let path = program.parse::<JailPath>();
                let name = !program.contains('/') && !matches!(program.as_str(), "." | "..");
                if path.is_err() && !name {
                    return Err(RequestError::Program(program.clone()));
                }
                Ok(Run {
                    user,
                    workdir,
                    command,
                })
            }
            [dashes] if dashes == "--" => Err(RequestError::Missing("the program")),
            [word, ..] => Err(RequestError::Unexpected(word.clone())),
            [] => Err(RequestError::Missing("--")),
        }
    }

    fn end(&self) -> Result<(), RequestError> {
        match self.0.first() {
            Some(word) => Err(RequestError::Unexpected(word.clone())),
            None => Ok(()),
        }
    }
}

impl Request {
    /// Reads the words, the first of which is this program's own name.
    pub(crate) fn parse(words: &[Vec<u8>]) -> Result<Self, RequestError> {
        let words: Vec<String> = words
            .iter()
            .enumerate()
            .skip(1)
            .map(|(place, word)| {
                String::from_utf8(word.clone()).map_err(|_| RequestError::NotText(place))
            })
            .collect::<Result<_, _>>()?;
        let (verb, rest) = words.split_first().ok_or(RequestError::NoVerb)?;
        let mut words = Words(rest);
        let request = match verb.as_str() {
            "attach" => {
                let jail: JailName = words.required("--jail")?.parse()?;
                if jail.as_str().starts_with(OWN) {
                    return Err(RequestError::Own(jail));
                }
                Self::Attach {
                    jail,
                    run: words.run()?,
                }
            }
            "create" => {
                let jail: JailName = words.required("--jail")?.parse()?;
                if !jail.as_str().starts_with(OWN) {
                    return Err(RequestError::NotOwn(jail));
                }
                Self::Create {
                    jail,
                    path: words.required("--path")?.parse()?,
                    ip4: words.required("--ip4")?.parse()?,
                    hide: words
                        .repeated("--hide")?
                        .into_iter()
                        .map(str::parse)
                        .collect::<Result<_, _>>()?,
                    run: words.run()?,
                }
            }
            "signal" => {
                let jail = words.optional("--jail")?.map(str::parse).transpose()?;
                let name = words.required("--signal")?;
                let signal: Signal = name.parse()?;
                if signal.name() != name {
                    return Err(RequestError::Signal(name.to_owned()));
                }
                let pids = words.repeated("--pid")?;
                if pids.is_empty() {
                    return Err(RequestError::Missing("--pid"));
                }
                Self::Signal {
                    jail,
                    signal,
                    pids: pids.into_iter().map(pid).collect::<Result<_, _>>()?,
                }
            }
            "remove" => Self::Remove {
                jail: words.required("--jail")?.parse()?,
            },
            "check" => Self::Check,
            other => return Err(RequestError::Verb(other.to_owned())),
        };
        words.end()?;
        Ok(request)
    }
}

impl Run {
    /// The paths in the jail that the program can be, the first that exists counts.
    pub(crate) fn candidates(&self) -> Vec<String> {
        let program = self.command.program();
        if program.starts_with('/') {
            return vec![program.to_owned()];
        }
        SEARCH
            .iter()
            .map(|directory| format!("{directory}/{program}"))
            .collect()
    }
}

fn pid(text: &str) -> Result<u32, RequestError> {
    let digits = !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
    let number: Option<u32> = text.parse().ok().filter(|_| digits);
    let number = number.ok_or_else(|| RequestError::Pid(text.to_owned()))?;
    Pid::new(number)?;
    Ok(number)
}

/// For the log: what is asked for, without the agent's arguments, which may be anything.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attach { jail, run } => write!(f, "verb=attach jail={jail}{run}"),
            Self::Create {
                jail,
                path,
                ip4,
                run,
                ..
            } => {
                let path = plain(path.as_str());
                write!(f, "verb=create jail={jail} path={path:?} ip4={ip4}{run}")
            }
            Self::Signal { jail, signal, pids } => {
                let jail = jail.as_ref().map_or("-", JailName::as_str);
                let pids: Vec<_> = pids.iter().take(16).map(u32::to_string).collect();
                write!(
                    f,
                    "verb=signal jail={jail} signal={signal} pids={}",
                    pids.join(",")
                )
            }
            Self::Remove { jail } => write!(f, "verb=remove jail={jail}"),
            Self::Check => f.write_str("verb=check"),
        }
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self
            .user
            .as_ref()
            .map_or("-".to_owned(), ToString::to_string);
        write!(
            f,
            " user={user} program={:?}",
            plain(self.command.program())
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn parse(line: &str) -> Result<Request, RequestError> {
        let words: Vec<Vec<u8>> = std::iter::once("helper")
            .chain(line.split(' ').filter(|word| !word.is_empty()))
            .map(|word| word.as_bytes().to_vec())
            .collect();
        Request::parse(&words)
    }

    #[test]
    fn the_examples_of_the_protocol_are_requests() {
        let document = include_str!("../../../docs/helper-protocol.md");
        let examples: Vec<_> = document
            .lines()
            .filter_map(|line| line.strip_prefix("colibri-jail-helper "))
            .filter(|line| !line.contains('['))
            .collect();
        assert!(examples.len() >= 5, "{examples:?}");
        for example in examples {
            parse(example).unwrap_or_else(|error| panic!("{example}: {error}"));
        }
    }

    #[test]
    fn whatever_is_not_the_grammar_is_no_request() {
        let table = [
            "",
            "run",
            "--help",
            "attach",
            "attach --jail",
            "attach --jail web",
            "attach --jail web --",
            "attach --jail=web -- /bin/sh",
            "attach --user a --jail web -- /bin/sh",
            "attach --jail web --user a --user b -- /bin/sh",
            "attach --jail web --workdir /w --user a -- /bin/sh",
            "attach --jail web --path / -- /bin/sh",
            "attach --jail web /bin/sh",
            "attach --jail -web -- /bin/sh",
            "attach --jail 12 -- /bin/sh",
            "attach --jail web.db -- /bin/sh",
            "attach --jail colibri-x -- /bin/sh",
            "attach --jail web -- bin/sh",
            "attach --jail web -- ../sh",
            "attach --jail web -- ..",
            "attach --jail web -- /bin/../sh",
            "attach --jail web --user -1 -- /bin/sh",
            "attach --jail web --user 4294967295 -- /bin/sh",
            "attach --jail web --workdir w -- /bin/sh",
            "create --jail web --path /r --ip4 disable -- /bin/sh",
            "create --jail colibri-x --ip4 disable -- /bin/sh",
            "create --jail colibri-x --path /r -- /bin/sh",
            "create --jail colibri-x --path r --ip4 disable -- /bin/sh",
            "create --jail colibri-x --path /r/../s --ip4 disable -- /bin/sh",
            "create --jail colibri-x --path /r --ip4 all -- /bin/sh",
            "create --jail colibri-x --path /r --ip4 disable --hide run -- /bin/sh",
            "signal --signal TERM",
            "signal --pid 7",
            "signal --signal TERM --pid",
            "signal --signal SIGTERM --pid 7",
            "signal --signal 15 --pid 7",
            "signal --signal TERM --pid 0",
            "signal --signal TERM --pid 1",
            "signal --signal TERM --pid -7",
            "signal --signal TERM --pid +7",
            "signal --signal TERM --pid 07",
            "signal --signal TERM --pid 4294967295",
            "signal --signal TERM --pid 7 --jail web",
            "signal --signal TERM --pid 7 -- x",
            "remove",
            "remove --jail a --jail b",
            "remove --jail a extra",
            "check it",
        ];
        for line in table {
            assert!(parse(line).is_err(), "{line}");
        }
        let bytes = [b"helper".to_vec(), b"\xff".to_vec()];
        assert_eq!(Request::parse(&bytes), Err(RequestError::NotText(1)));
        assert_eq!(Request::parse(&[]), Err(RequestError::NoVerb));
    }

    #[test]
    fn everything_behind_the_dashes_is_the_agents() {
        let Ok(Request::Attach { run, .. }) =
            parse("attach --jail web -- sh --user root -- --jail x")
        else {
            panic!("no attach");
        };
        assert_eq!(run.command.args(), ["--user", "root", "--", "--jail", "x"]);
        assert_eq!(run.user, None);
        assert_eq!(run.candidates()[3], "/usr/bin/sh");
    }

    proptest! {
        #[test]
        fn no_words_break_the_parser(words in prop::collection::vec(
            prop_oneof![
                prop::sample::select(vec!["attach", "create", "signal", "remove", "check", "--jail", "--path", "--ip4",
                    "--hide", "--user", "--workdir", "--signal", "--pid", "--", "colibri-x", "web", "/", "7", "TERM", "disable"])
                    .prop_map(|word| word.as_bytes().to_vec()),
                prop::collection::vec(any::<u8>(), 0..8),
            ], 0..14)
        ) {
            // What is taken shows in one line that nothing of it can end.
            if let Ok(request) = Request::parse(&words) {
                let shown = request.to_string();
                prop_assert!(!shown.contains('\n') && shown.is_ascii());
            }
        }
    }
}
