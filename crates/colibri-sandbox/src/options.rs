//! Arguments of the parts, which `colibri-jail-core` composes.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use colibri_jail_core::Restriction;

use crate::SandboxError;

/// A program and its arguments.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Command {
    pub(crate) program: OsString,
    pub(crate) args: Vec<OsString>,
}

/// The user of the agent's processes on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum User {
    /// The user of this process.
    Caller,
    Ids {
        uid: u32,
        gid: u32,
    },
    /// A uid that no other process has.
    Private,
}

/// Arguments of `run`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) user: User,
    /// Descriptors of mount sources, which `run` replaces by those of mounts that show the user as the owner.
    pub(crate) held: Vec<i32>,
    /// Directories in which no other agent may remove placeholders meanwhile.
    pub(crate) locked: Vec<PathBuf>,
    /// Descriptor to open for this program.
    pub(crate) program: Option<i32>,
    /// Descriptors to open for passwd(5) and group(5) with the private user.
    pub(crate) user_tables: Option<(i32, i32)>,
    pub(crate) command: Command,
}

/// Arguments of `enter`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Enter {
    /// Open the port of the proxy.
    pub(crate) proxy: bool,
    /// Loopback ports of the host to open too.
    pub(crate) ports: Vec<u16>,
    /// The ids that the agent sees as its own; absent: those on the host.
    pub(crate) user: Option<(u32, u32)>,
    pub(crate) lifted: Vec<Restriction>,
    /// Standard input is a terminal of the agent alone: make it the agent's controlling terminal.
    pub(crate) terminal: bool,
    /// Maximum number of open files of each process of the agent.
    pub(crate) open_files: Option<u64>,
    /// Maximum number of processes and threads of the agent.
    pub(crate) processes: Option<u64>,
    /// Mounts to move, with their targets.
    pub(crate) moved: Vec<(PathBuf, PathBuf)>,
    pub(crate) masked: Vec<PathBuf>,
    /// As `masked`, for files that the host may remove while the agent runs.
    pub(crate) hidden: Vec<PathBuf>,
    /// Existing paths in writable directories that are read-only too.
    pub(crate) read_only: Vec<PathBuf>,
    pub(crate) protected: Vec<PathBuf>,
    /// Directories of git repositories.
    pub(crate) protected_git: Vec<PathBuf>,
    /// Writable directories without protected paths.
    pub(crate) writable: Vec<PathBuf>,
    pub(crate) unprotected: Vec<PathBuf>,
    pub(crate) home: Option<PathBuf>,
    pub(crate) workdir: Option<PathBuf>,
    pub(crate) command: Option<Command>,
}

/// The words before `--`, and the command after it.
struct Words<'a> {
    words: std::slice::Iter<'a, OsString>,
    command: Command,
}

impl<'a> Words<'a> {
    fn split(words: &'a [OsString]) -> Option<Self> {
        let separator = words.iter().position(|word| word == "--")?;
        let (words, command) = words.split_at(separator);
        let [_, program, args @ ..] = command else {
            return None;
        };
        Some(Self {
            words: words.iter(),
            command: Command {
                program: program.clone(),
                args: args.to_vec(),
            },
        })
    }

    fn value(&mut self) -> Option<&'a OsStr> {
        self.words.next().map(OsString::as_os_str)
    }
}

/// Parses `UID:GID`.
pub(crate) fn parse_ids(text: &str) -> Option<(u32, u32)> {
    let (uid, gid) = text.split_once(':')?;
    Some((uid.parse().ok()?, gid.parse().ok()?))
}

impl Run {
    /// Parses the arguments; `None` for a usage error.
    pub(crate) fn parse(words: &[OsString]) -> Option<Result<Self, SandboxError>> {
        let mut words = Words::split(words)?;
        let (mut user, mut held, mut user_tables) = (User::Caller, Vec::new(), None);
        let (mut locked, mut program) = (Vec::new(), None);
        while let Some(option) = words.value() {
            match option.to_str()? {
                "--private-user" => user = User::Private,
                "--user" => {
                    let (uid, gid) = parse_ids(words.value()?.to_str()?)?;
                    if uid == 0 || gid == 0 {
                        return Some(Err(
                            "user 0 is refused for an agent; give another user".into()
                        ));
                    }
                    user = User::Ids { uid, gid };
                }
                "--user-tables" => {
                    let (passwd, group) = words.value()?.to_str()?.split_once(':')?;
                    user_tables = Some((passwd.parse().ok()?, group.parse().ok()?));
                }
                "--program" => program = Some(words.value()?.to_str()?.parse().ok()?),
                "--lock" => locked.push(words.value()?.into()),
                "--held" => held.push(words.value()?.to_str()?.parse().ok()?),
                _ => return None,
            }
        }
        Some(Ok(Self {
            user,
            held,
            locked,
            program,
            user_tables,
            command: words.command,
        }))
    }
}

impl Enter {
    /// Parses the arguments; `None` for a usage error.
    pub(crate) fn parse(words: &[OsString]) -> Option<Result<Self, SandboxError>> {
        let mut words = Words::split(words)?;
        let mut enter = Self::default();
        while let Some(option) = words.value() {
            match option.to_str()? {
                "--proxy" => enter.proxy = true,
                "--terminal" => enter.terminal = true,
                "--listen" => enter.ports.push(words.value()?.to_str()?.parse().ok()?),
                "--user" => enter.user = Some(parse_ids(words.value()?.to_str()?)?),
                "--lift" => match words.value()?.to_str()?.parse() {
                    Ok(restriction) => enter.lifted.push(restriction),
                    Err(error) => return Some(Err(Box::new(error))),
                },
                "--open-files" => {
                    enter.open_files = Some(words.value()?.to_str()?.parse().ok()?);
                }
                "--processes" => {
                    enter.processes = Some(words.value()?.to_str()?.parse().ok()?);
                }
                "--move" => {
                    let staged = words.value()?.into();
                    enter.moved.push((staged, words.value()?.into()));
                }
                "--hide" => enter.hidden.push(words.value()?.into()),
                "--read-only" => enter.read_only.push(words.value()?.into()),
                "--mask" => enter.masked.push(words.value()?.into()),
                "--protect" => enter.protected.push(words.value()?.into()),
                "--protect-git" => enter.protected_git.push(words.value()?.into()),
                "--writable" => enter.writable.push(words.value()?.into()),
                "--unprotect" => enter.unprotected.push(words.value()?.into()),
                "--home" => enter.home = Some(words.value()?.into()),
                "--workdir" => enter.workdir = Some(words.value()?.into()),
                _ => return None,
            }
        }
        enter.command = Some(words.command);
        Some(Ok(enter))
    }

    /// Returns whether a restriction applies.
    pub(crate) fn applies(&self, restriction: Restriction) -> bool {
        !self.lifted.contains(&restriction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn arguments_are_parsed_or_refused() {
        let run = |text| Run::parse(&words(text)).map(Result::unwrap);
        assert_eq!(
            run("--user 5:6 --program 9 --held 10 --held 11 -- bwrap --x").unwrap(),
            Run {
                user: User::Ids { uid: 5, gid: 6 },
                held: vec![10, 11],
                locked: vec![],
                program: Some(9),
                user_tables: None,
                command: Command {
                    program: "bwrap".into(),
                    args: words("--x"),
                },
            }
        );
        for bad in [
            "",
            "--",
            "bwrap",
            "--user 5 -- a",
            "--held -- a",
            "--x -- a",
        ] {
            assert_eq!(run(bad), None, "{bad}");
        }
        for root in ["--user 0:5 -- a", "--user 5:0 -- a"] {
            assert!(Run::parse(&words(root)).unwrap().is_err(), "{root}");
        }
        let enter = Enter::parse(&words("--lift landlock --mask /a --proxy -- a -- b"));
        let enter = enter.unwrap().unwrap();
        assert!(!enter.applies(Restriction::Landlock) && enter.applies(Restriction::IoUring));
        assert_eq!(enter.command.unwrap().args, words("-- b"));
        assert!(Enter::parse(&words("--lift x -- a")).unwrap().is_err());
        for bad in ["", "a", "--mask -- a", "--nothing -- a"] {
            assert!(Enter::parse(&words(bad)).is_none(), "{bad}");
        }
    }
}
