//! Parses a request by the grammar of docs/helper-protocol.md: fixed order, each option once, its value in a separate
//! argument. Every value becomes a validated type here.

use std::fmt;
use std::str::FromStr;

use colibri_jail_core::{
    CommandLine, CommandLineError, EphemeralJail, Ip4Policy, JailError, JailName, JailPath,
    JailUser, Pid, Signal,
};

use crate::escape::shortened;
use crate::paths::SEARCH;

/// Prefix of the names of created jails; `attach` refuses it.
const CREATED_PREFIX: &str = "colibri-";
/// Maximum number of `--hide` or `--pid` options of one request.
const MAX_REPEATED: usize = 1024;

/// Maximum length of a value in the log, in bytes.
const MAX_LOGGED: usize = 256;

/// A parsed request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HelperRequest {
    /// Run a program in an existing jail.
    Attach {
        jail: JailName,
        run: ProgramRun,
    },
    /// Create a jail, in which `--hide` masks directories, and run a program in it. Its user is in `run`.
    Create {
        jail: EphemeralJail,
        /// Its network contains only a loopback interface with the port of a proxy.
        is_filtered: bool,
        run: ProgramRun,
    },
    /// Signal processes of the caller's agents.
    Signal {
        jail: Option<JailName>,
        signal: Signal,
        pids: Vec<u32>,
    },
    Remove(JailName),
    /// Run a command of root under a monitor (FreeBSD).
    Monitor {
        /// The jail that the command, jail(8), creates and that is removed with the agent.
        created: Option<MonitoredJail>,
        command: CommandLine,
    },
    /// Remove what is left of a monitored jail (FreeBSD).
    Clean {
        jail: JailName,
        root: Option<RootRequest>,
    },
    /// Wait until the proxy of a monitored jail listens (FreeBSD).
    AwaitProxy(JailName),
    Check,
}

/// A jail that jail(8) creates under a monitor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MonitoredJail {
    pub(crate) jail: JailName,
    /// Number of commands that jail(8) starts before the agent: `exec.created` is one.
    pub(crate) setup_commands: u32,
    /// Its network contains only a loopback interface with the port of a proxy.
    pub(crate) is_filtered: bool,
    /// What the monitor prepares in the root directory before.
    pub(crate) root: Option<RootRequest>,
    /// What is mounted in the root directory, in this order. Not empty only with a root.
    pub(crate) mounts: Vec<MountRequest>,
}

/// A directory or file of the host that is mounted in the root directory of a jail.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(not(target_os = "freebsd"), allow(dead_code))]
pub(crate) struct MountRequest {
    pub(crate) source: JailPath,
    /// Inside the root.
    pub(crate) target: JailPath,
    pub(crate) read_only: bool,
}

/// A root directory that the monitor makes or extends for one jail. The paths of the options after the first are inside
/// it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(not(target_os = "freebsd"), allow(dead_code))]
pub(crate) struct RootRequest {
    pub(crate) base: RootBase,
    /// Directories that get a private file system, unless the root is a writable copy of the template.
    pub(crate) writable: Vec<JailPath>,
    /// Mount points to create in them.
    pub(crate) mount_points: Vec<JailPath>,
    /// Mount point of a devfs.
    pub(crate) devfs: Option<JailPath>,
    /// Mount point of a fdescfs.
    pub(crate) fdescfs: Option<JailPath>,
}

/// Where a root directory comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RootBase {
    /// The monitor makes the root from this template.
    Template(JailPath),
    /// The root exists, and stays.
    Existing(JailPath),
}

/// The program to run in a jail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProgramRun {
    pub(crate) user: Option<JailUser>,
    pub(crate) workdir: Option<JailPath>,
    pub(crate) command: CommandLine,
}

/// Why the arguments are not a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("no verb; give attach, create, signal, remove, monitor, clean, await-proxy or check")]
    NoVerb,
    #[error(
        "unknown verb {0:?}; give attach, create, signal, remove, monitor, clean, await-proxy or check"
    )]
    Verb(String),
    #[error("argument {0} is not UTF-8; encode it as UTF-8")]
    NotUtf8(usize),
    #[error("{0} is missing; see docs/helper-protocol.md for the order of the arguments")]
    Missing(&'static str),
    #[error(
        "unexpected argument {0:?}; see docs/helper-protocol.md for the order of the arguments"
    )]
    Unexpected(String),
    #[error("{0} is given more than {MAX_REPEATED} times; split the request")]
    TooMany(&'static str),
    #[error("--pid {0:?} is not a process id; give a decimal number above 1")]
    Pid(String),
    #[error("--setup-commands {0:?} is not a count; give a decimal number below 1000")]
    Count(String),
    #[error("--network {0:?} is not a network; give filtered")]
    Network(String),
    #[error("--network filtered conflicts with --ip4 {0}; give --ip4 disable")]
    FilteredIp4(String),
    #[error("--signal {0:?} is not a signal name; write it without SIG, as TERM")]
    Signal(String),
    #[error(
        "cannot use jail {0} as an agent's own jail: its name does not start with {CREATED_PREFIX}; give another name, or use attach to enter an existing jail"
    )]
    NotCreatedName(JailName),
    #[error(
        "cannot enter jail {0}: names that start with {CREATED_PREFIX} belong to one agent; give another jail"
    )]
    CreatedName(JailName),
    #[error(
        "program {0:?} is neither an absolute, normal path nor a plain name; give one of these"
    )]
    Program(String),
    #[error(transparent)]
    Value(#[from] JailError),
    #[error(transparent)]
    Command(#[from] CommandLineError),
}

/// The arguments that are not parsed yet.
struct RequestArguments<'a>(&'a [String]);

impl<'a> RequestArguments<'a> {
    fn optional(&mut self, name: &'static str) -> Result<Option<&'a str>, RequestError> {
        match self.0 {
            [option, value, rest @ ..] if option == name => {
                self.0 = rest;
                Ok(Some(value))
            }
            [option] if option == name => Err(RequestError::Missing(name)),
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
            if values.len() > MAX_REPEATED {
                return Err(RequestError::TooMany(name));
            }
        }
        Ok(values)
    }

    fn paths(&mut self, name: &'static str) -> Result<Vec<JailPath>, RequestError> {
        let values = self.repeated(name)?.into_iter().map(str::parse);
        Ok(values.collect::<Result<_, _>>()?)
    }

    /// Returns whether the network is filtered.
    fn network(&mut self) -> Result<bool, RequestError> {
        match self.optional("--network")? {
            None => Ok(false),
            Some("filtered") => Ok(true),
            Some(other) => Err(RequestError::Network(other.to_owned())),
        }
    }

    fn parsed<T>(&mut self, name: &'static str) -> Result<Option<T>, RequestError>
    where
        T: FromStr<Err = JailError>,
    {
        Ok(self.optional(name)?.map(str::parse).transpose()?)
    }

    fn root(&mut self) -> Result<Option<RootRequest>, RequestError> {
        let mut base = self.parsed("--template")?.map(RootBase::Template);
        if base.is_none() {
            base = self.parsed("--root")?.map(RootBase::Existing);
        }
        let Some(base) = base else { return Ok(None) };
        Ok(Some(RootRequest {
            base,
            writable: self.paths("--writable")?,
            mount_points: self.paths("--mount-point")?,
            devfs: self.parsed("--devfs")?,
            fdescfs: self.parsed("--fdescfs")?,
        }))
    }

    fn mounts(&mut self) -> Result<Vec<MountRequest>, RequestError> {
        let mut mounts = Vec::new();
        while let [option, source, target, rest @ ..] = self.0
            && matches!(option.as_str(), "--mount" | "--mount-ro")
        {
            if mounts.len() == MAX_REPEATED {
                return Err(RequestError::TooMany("--mount"));
            }
            mounts.push(MountRequest {
                source: source.parse()?,
                target: target.parse()?,
                read_only: option == "--mount-ro",
            });
            self.0 = rest;
        }
        Ok(mounts)
    }

    fn monitored_jail(&mut self) -> Result<Option<MonitoredJail>, RequestError> {
        let Some(jail) = self.optional("--jail")? else {
            return Ok(None);
        };
        let jail = created_name(jail)?;
        let count = self.required("--setup-commands")?;
        let setup_commands = parse_decimal(count)
            .filter(|count| *count < 1000)
            .ok_or_else(|| RequestError::Count(count.to_owned()))?;
        let is_filtered = self.network()?;
        let root = self.root()?;
        let mounts = match root {
            Some(_) => self.mounts()?,
            None => Vec::new(),
        };
        Ok(Some(MonitoredJail {
            jail,
            setup_commands,
            is_filtered,
            root,
            mounts,
        }))
    }

    fn run(&mut self) -> Result<ProgramRun, RequestError> {
        let user = self.parsed("--user")?;
        let workdir = self.parsed("--workdir")?;
        match self.0 {
            [dashes, program, args @ ..] if dashes == "--" => {
                self.0 = &[];
                let command = CommandLine::new(program, args)?;
                let is_path = program.parse::<JailPath>().is_ok();
                let is_name = !program.contains('/') && !matches!(program.as_str(), "." | "..");
                if !is_path && !is_name {
                    return Err(RequestError::Program(program.clone()));
                }
                Ok(ProgramRun {
                    user,
                    workdir,
                    command,
                })
            }
            [dashes] if dashes == "--" => Err(RequestError::Missing("the program")),
            [argument, ..] => Err(RequestError::Unexpected(argument.clone())),
            [] => Err(RequestError::Missing("--")),
        }
    }

    fn end(&self) -> Result<(), RequestError> {
        match self.0.first() {
            Some(argument) => Err(RequestError::Unexpected(argument.clone())),
            None => Ok(()),
        }
    }
}

impl HelperRequest {
    /// Reports whether only root may make the request.
    pub(crate) fn is_for_root(&self) -> bool {
        use HelperRequest::{AwaitProxy, Clean, Monitor};
        matches!(self, Monitor { .. } | Clean { .. } | AwaitProxy(_))
    }

    /// Parses `argv`, whose first element is the name of this program.
    pub(crate) fn parse(argv: &[Vec<u8>]) -> Result<Self, RequestError> {
        let utf8 = |(index, argument): (usize, &Vec<u8>)| {
            String::from_utf8(argument.clone()).map_err(|_| RequestError::NotUtf8(index))
        };
        let arguments = argv.iter().enumerate().skip(1).map(utf8);
        let arguments: Vec<String> = arguments.collect::<Result<_, _>>()?;
        let (verb, options) = arguments.split_first().ok_or(RequestError::NoVerb)?;
        let mut options = RequestArguments(options);
        let request = match verb.as_str() {
            "attach" => {
                let jail: JailName = options.required("--jail")?.parse()?;
                if jail.as_str().starts_with(CREATED_PREFIX) {
                    return Err(RequestError::CreatedName(jail));
                }
                let run = options.run()?;
                Self::Attach { jail, run }
            }
            "create" => {
                let jail = created_name(options.required("--jail")?)?;
                let path = options.required("--path")?.parse()?;
                let mut jail = EphemeralJail::new(jail, path);
                jail.ip4 = options.required("--ip4")?.parse()?;
                let is_filtered = options.network()?;
                if is_filtered && jail.ip4 != Ip4Policy::Disable {
                    return Err(RequestError::FilteredIp4(jail.ip4.to_string()));
                }
                jail.masked = options.paths("--hide")?;
                let run = options.run()?;
                Self::Create {
                    jail,
                    is_filtered,
                    run,
                }
            }
            "signal" => {
                let jail = options.parsed("--jail")?;
                let name = options.required("--signal")?;
                let signal: Signal = name.parse()?;
                if signal.name() != name {
                    return Err(RequestError::Signal(name.to_owned()));
                }
                let pids = options.repeated("--pid")?;
                if pids.is_empty() {
                    return Err(RequestError::Missing("--pid"));
                }
                let pids = pids.into_iter().map(parse_pid).collect::<Result<_, _>>()?;
                Self::Signal { jail, signal, pids }
            }
            "remove" => Self::Remove(options.required("--jail")?.parse()?),
            "monitor" => {
                let created = options.monitored_jail()?;
                let run = options.run()?;
                let program = run.command.program();
                if run.user.is_some() || run.workdir.is_some() || !program.starts_with('/') {
                    return Err(RequestError::Program(program.to_owned()));
                }
                Self::Monitor {
                    created,
                    command: run.command,
                }
            }
            "clean" => Self::Clean {
                jail: created_name(options.required("--jail")?)?,
                root: options.root()?,
            },
            "await-proxy" => Self::AwaitProxy(created_name(options.required("--jail")?)?),
            "check" => Self::Check,
            other => return Err(RequestError::Verb(other.to_owned())),
        };
        options.end()?;
        Ok(request)
    }
}

impl ProgramRun {
    /// Returns the paths in the jail that the program may have; the first that exists is executed.
    pub(crate) fn candidates(&self) -> Vec<String> {
        let program = self.command.program();
        if program.starts_with('/') {
            return vec![program.to_owned()];
        }
        let search = SEARCH.iter();
        search.map(|path| format!("{path}/{program}")).collect()
    }
}

/// Parses the name of a created jail.
fn created_name(text: &str) -> Result<JailName, RequestError> {
    let jail: JailName = text.parse()?;
    match jail.as_str().starts_with(CREATED_PREFIX) {
        true => Ok(jail),
        false => Err(RequestError::NotCreatedName(jail)),
    }
}

/// Parses a number without sign and leading zeros.
fn parse_decimal(text: &str) -> Option<u32> {
    let is_decimal = text == "0" || !text.starts_with('0');
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_decimal && digits)
}

fn parse_pid(text: &str) -> Result<u32, RequestError> {
    let pid = parse_decimal(text).ok_or_else(|| RequestError::Pid(text.to_owned()))?;
    Pid::new(pid)?;
    Ok(pid)
}

/// Formats a request for the log, without the arguments of the agent, which may contain secrets.
impl fmt::Display for HelperRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attach { jail, run } => write!(f, "verb=attach jail={jail}{run}"),
            Self::Create {
                jail,
                is_filtered,
                run,
            } => {
                let ip4 = shortened(&jail.ip4.to_string(), MAX_LOGGED);
                let path = shortened(jail.path.as_str(), MAX_LOGGED);
                let name = &jail.name;
                let network = is_filtered.then_some(" network=filtered");
                let network = network.unwrap_or_default();
                write!(
                    f,
                    "verb=create jail={name}{run} ip4={ip4}{network} path={path:?}"
                )
            }
            Self::Signal { jail, signal, pids } => {
                let jail = jail.as_ref().map_or("-", JailName::as_str);
                let pids: Vec<_> = pids.iter().take(16).map(u32::to_string).collect();
                let pids = pids.join(",");
                write!(f, "verb=signal jail={jail} signal={signal} pids={pids}")
            }
            Self::Remove(jail) => write!(f, "verb=remove jail={jail}"),
            Self::Monitor { created, command } => {
                let jail = created.as_ref();
                let jail = jail.map_or("-", |created| created.jail.as_str());
                let program = shortened(command.program(), MAX_LOGGED);
                write!(f, "verb=monitor jail={jail} program={program:?}")
            }
            Self::Clean { jail, .. } => write!(f, "verb=clean jail={jail}"),
            Self::AwaitProxy(jail) => write!(f, "verb=await-proxy jail={jail}"),
            Self::Check => f.write_str("verb=check"),
        }
    }
}

impl fmt::Display for ProgramRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.user.as_ref().map(ToString::to_string);
        let user = user.as_deref().unwrap_or("-");
        let program = shortened(self.command.program(), MAX_LOGGED);
        write!(f, " user={user} program={program:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(line: &str) -> Result<HelperRequest, RequestError> {
        let argv: Vec<Vec<u8>> = std::iter::once("helper")
            .chain(line.split(' ').filter(|word| !word.is_empty()))
            .map(|word| word.as_bytes().to_vec())
            .collect();
        HelperRequest::parse(&argv)
    }

    #[test]
    fn protocol_document_examples_parse() {
        let document = include_str!("../../../docs/helper-protocol.md");
        let examples: Vec<_> = document
            .lines()
            .filter_map(|line| line.strip_prefix("colibri-jail-helper "))
            .filter(|line| !line.contains('[') && !line.contains("NAME"))
            .collect();
        assert!(examples.len() >= 5, "{examples:?}");
        for example in examples {
            parse(example).unwrap_or_else(|error| panic!("{example}: {error}"));
        }
    }

    #[test]
    fn arguments_outside_the_grammar_are_refused() {
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
            "create --jail colibri-x --path /r --ip4 disable --network all -- /bin/sh",
            "create --jail colibri-x --path /r --ip4 inherit --network filtered -- /bin/sh",
            "create --jail colibri-x --path /r --network filtered --ip4 disable -- /bin/sh",
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
            "monitor",
            "monitor -- sh",
            "monitor --user root -- /bin/sh",
            "monitor --jail web --setup-commands 0 -- /bin/sh",
            "monitor --jail colibri-x -- /bin/sh",
            "monitor --jail colibri-x --setup-commands 1000 -- /bin/sh",
            "monitor --jail colibri-x --setup-commands 01 -- /bin/sh",
            "monitor --jail colibri-x --setup-commands 0 --mount /a /b -- /bin/sh",
            "monitor --jail colibri-x --setup-commands 0 --root /r --mount a /b -- /bin/sh",
            "monitor --jail colibri-x --setup-commands 0 --root /r --mount /a b/.. -- /bin/sh",
            "monitor --jail colibri-x --setup-commands 0 --root /r --mount /a -- /bin/sh",
            "monitor --jail colibri-x --setup-commands 0 --network x -- /bin/sh",
            "monitor --setup-commands 0 -- /bin/sh",
            "monitor --network filtered -- /bin/sh",
            "await-proxy",
            "await-proxy --jail web",
            "await-proxy --jail colibri-x -- /bin/sh",
            "clean",
            "clean --jail web",
            "clean --jail colibri-x --mount /a /b",
            "clean --jail colibri-x -- /bin/sh",
            "clean --jail colibri-x --devfs /dev",
            "clean --jail colibri-x --template t",
            "clean --jail colibri-x --template /t --root /t",
            "clean --jail colibri-x --template /t --devfs /dev/../x",
            "clean --jail colibri-x --template /t --mount /a /b --devfs /dev",
            "monitor --jail colibri-x --template /t --setup-commands 0 -- /bin/sh",
            "monitor --template /t -- /bin/sh",
        ];
        for line in table {
            assert!(parse(line).is_err(), "{line}");
        }
        let bytes = [b"helper".to_vec(), b"\xff".to_vec()];
        assert_eq!(HelperRequest::parse(&bytes), Err(RequestError::NotUtf8(1)));
        assert_eq!(HelperRequest::parse(&[]), Err(RequestError::NoVerb));
    }

    #[test]
    fn arguments_after_dashes_belong_to_the_agent() {
        let Ok(HelperRequest::Attach { run, .. }) =
            parse("attach --jail web -- sh --user root -- --jail x")
        else {
            panic!("not an attach request");
        };
        assert_eq!(run.command.args(), ["--user", "root", "--", "--jail", "x"]);
        assert_eq!(run.user, None);
        assert_eq!(run.candidates()[3], "/usr/bin/sh");
    }

    proptest! {
        #[test]
        fn random_arguments_do_not_break_the_parser(argv in prop::collection::vec(
            prop_oneof![
                prop::sample::select(vec!["attach", "create", "signal", "remove", "check", "monitor", "clean", "--jail", "--path",
                    "--ip4", "--setup-commands", "--template", "--root", "--writable", "--devfs", "--network", "filtered", "await-proxy", "--mount", "--mount-ro", "--hide", "--user", "--workdir", "--signal", "--pid", "--", "colibri-x", "web", "/", "7", "TERM", "disable"])
                    .prop_map(|word| word.as_bytes().to_vec()),
                prop::collection::vec(any::<u8>(), 0..8),
            ], 0..14)
        ) {
            // A request that parses is displayed in one line of ASCII.
            if let Ok(request) = HelperRequest::parse(&argv) {
                let shown = request.to_string();
                prop_assert!(!shown.contains('\n') && shown.is_ascii());
            }
        }
    }
}
