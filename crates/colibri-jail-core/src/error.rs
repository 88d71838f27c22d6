//! Validation errors, each with a hint. Values are shown escaped because they are untrusted. Messages name fields of
//! [`crate::JailConfig`] and [`crate::Limits`] in backquotes, so that a program can replace them, as the command line
//! does by its flags.

/// Why a program and its arguments cannot be a command line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandLineError {
    /// No program.
    #[error("the program name is empty; give a program to run")]
    EmptyProgram,
    /// A byte that ends strings in execve(2).
    #[error("{0} contains a NUL byte, which execve(2) cannot pass; remove it")]
    Nul(String),
    /// One argument or variable is longer than execve(2) accepts.
    #[error(
        "{what} has {bytes} bytes, more than the {max} that execve(2) takes in one string; pass it in a file or on standard input"
    )]
    StringTooLong {
        /// The argument or the variable.
        what: String,
        /// Its length, in bytes.
        bytes: usize,
        /// The longest allowed, in bytes.
        max: usize,
    },
    /// Arguments and environment together are longer than execve(2) accepts.
    #[error(
        "arguments and environment have {bytes} bytes, more than the {max} that execve(2) takes here (ARG_MAX); pass them in a file or on standard input"
    )]
    TooLong {
        /// Their length including one pointer for each, in bytes.
        bytes: usize,
        /// The longest allowed, in bytes.
        max: usize,
    },
    /// The confining program accepts fewer arguments.
    #[error(
        "{count} arguments are more than {program} takes ({max}, its own included); pass them in a file or on standard input"
    )]
    TooMany {
        /// How many there are.
        count: usize,
        /// The confining program.
        program: String,
        /// Maximum number that it accepts.
        max: usize,
    },
}

/// Why a confinement, or one of its values, is not possible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JailError {
    /// The umask is not an octal permission mask.
    #[error("umask {0:?} is invalid: it is not an octal number up to 777; write it like 022")]
    Umask(String),
    /// Jail name: empty.
    #[error("the jail name is empty; give a name of letters, digits, '-' and '_'")]
    NameEmpty,
    /// Jail name: jexec(8) would read it as an option.
    #[error(
        "jail name {0:?} begins with '-': jexec(8) would read it as an option; start it with a letter, a digit or '_'"
    )]
    NameLeadingDash(String),
    /// Jail name: jexec(8) would read it as a jail id.
    #[error(
        "jail name {0:?} is all digits: jexec(8) would read it as a jail id; give the jail's name"
    )]
    NameAllDigits(String),
    /// Jail name: a dot names a child jail.
    #[error(
        "jail name {0:?} contains '.', which names a child of another jail; give a jail of this host itself"
    )]
    NameDot(String),
    /// Jail name: a comma separates values.
    #[error("jail name {0:?} contains ',', which separates values for jail(8); remove it")]
    NameComma(String),
    /// Jail name: an equals sign separates a parameter from its value.
    #[error(
        "jail name {0:?} contains '=', which separates a parameter from its value for jail(8); remove it"
    )]
    NameEquals(String),
    /// Jail name: a quote.
    #[error("jail name {0:?} contains a quote; remove it")]
    NameQuote(String),
    /// Jail name: white space.
    #[error("jail name {0:?} contains white space; remove it")]
    NameWhitespace(String),
    /// Jail name: NUL.
    #[error("jail name {0:?} contains a NUL byte; remove it")]
    NameNul(String),
    /// Jail name: a control character.
    #[error("jail name {0:?} contains a control character; remove it")]
    NameControl(String),
    /// Jail name: something else.
    #[error("jail name {name:?} contains {found:?}; use letters, digits, '-' and '_' only")]
    NameCharacter {
        /// The name.
        name: String,
        /// The first character that is not allowed.
        found: char,
    },
    /// Jail name: longer than the kernel keeps.
    #[error("the jail name has {length} bytes, at most {max} are allowed; shorten it")]
    NameTooLong {
        /// Its length, in bytes.
        length: usize,
        /// The longest allowed, in bytes.
        max: usize,
    },
    /// Path: empty.
    #[error("the path is empty; give an absolute path")]
    PathEmpty,
    /// Path: relative.
    #[error("path {0:?} is relative; give an absolute path, which begins with '/'")]
    PathRelative(String),
    /// Path: has other spellings.
    #[error("path {0:?} is not normalized; remove '.', '..', doubled and trailing '/'")]
    PathNotNormal(String),
    /// Path: NUL.
    #[error("path {0:?} contains a NUL byte; remove it")]
    PathNul(String),
    /// Path: control characters.
    #[error("path {0:?} contains a control character; rename the directory")]
    PathControl(String),
    /// Path: longer than the kernel takes.
    #[error("the path has {length} bytes, at most {max} are allowed; shorten it")]
    PathTooLong {
        /// Its length, in bytes.
        length: usize,
        /// The longest allowed, in bytes.
        max: usize,
    },
    /// Path: syntax for jail(8).
    #[error("path {path:?} contains {found:?}, which is syntax for jail(8); rename the directory")]
    PathSyntax {
        /// The path.
        path: String,
        /// The first character that is not allowed.
        found: char,
    },
    /// ip4: empty.
    #[error("`ip4` is empty; give inherit, disable, new, or addresses separated by ','")]
    Ip4Empty,
    /// ip4: an entry that is no address.
    #[error(
        "`ip4` entry {0:?} is not an IPv4 address; give inherit, disable, new, or addresses like 192.0.2.7 separated by ','"
    )]
    Ip4Malformed(String),
    /// ip4: the same address twice.
    #[error("`ip4` address {0} is given twice; give it once")]
    Ip4Duplicate(std::net::Ipv4Addr),
    /// ip4: no address of a host.
    #[error("`ip4` address {0} cannot belong to a jail; give the address of an interface")]
    Ip4Unusable(std::net::Ipv4Addr),
    /// ip4 without a jail that is made.
    #[error(
        "`ip4` applies to a new jail, and jail {0} exists already; remove `ip4`, or replace `name` by `path` to create a jail"
    )]
    Ip4WithName(crate::JailName),
    /// ip4 with nothing to apply to.
    #[error("`ip4` needs a jail; add `path`, or remove `ip4`")]
    Ip4WithoutJail,
    /// User: empty.
    #[error("`user` is empty; give a name, UID or UID:GID")]
    UserEmpty,
    /// User: reads as an option.
    #[error("`user` {0:?} begins with '-', which reads as an option; give a name, UID or UID:GID")]
    UserLeadingDash(String),
    /// User: longer than the system keeps.
    #[error("the `user` name has {length} bytes, at most {max} are allowed; give another user")]
    UserTooLong {
        /// Its length, in bytes.
        length: usize,
        /// The longest allowed, in bytes.
        max: usize,
    },
    /// User: characters.
    #[error("`user` {user:?} contains {found:?}; use letters, digits, '-', '_' and '.' only")]
    UserCharacter {
        /// The user.
        user: String,
        /// The first character that is not allowed.
        found: char,
    },
    /// User: a number that no user has.
    #[error("`user` id {0:?} is out of range; give 0 to 4294967294")]
    UserId(String),
    /// User with nothing to apply to.
    #[error("`user` needs a jail; add `name` or `path`, or remove `user`")]
    UserWithoutJail,
    /// FreeBSD looks users up by name.
    #[error(
        "`user` {0} is a number, and jexec(8) and jail(8) take names; give the name of a user inside the jail"
    )]
    UserNumberOnFreebsd(String),
    /// bubblewrap maps numbers.
    #[error("`user` {0} is a name, and bubblewrap takes numbers; give UID or UID:GID")]
    UserNameOnBubblewrap(String),
    /// There are no persistent jails with bubblewrap.
    #[error(
        "jail {0} cannot be entered: bubblewrap has no persistent jails; replace `name` by `path`, the root directory of a sandbox"
    )]
    NameOnBubblewrap(crate::JailName),
    /// bubblewrap's network is all or nothing.
    #[error(
        "`ip4` {0} is not possible with bubblewrap; give disable for no network, or inherit for the host's network"
    )]
    Ip4OnBubblewrap(String),
    /// Nothing to do with bubblewrap.
    #[error(
        "bubblewrap has no operation {0}: a sandbox ends with its first process and is not listed; use the freebsd engine"
    )]
    OpOnBubblewrap(&'static str),
    /// Mount: not in one of the written forms.
    #[error(
        "mount {0:?} has the wrong form; give SOURCE or SOURCE:TARGET, and :ro or :rw after it if needed"
    )]
    MountMalformed(String),
    /// Mount: an option that does not exist.
    #[error(
        "mount {mount:?} has the unknown option {option:?} after its last colon; give ro or rw, or an absolute target"
    )]
    MountOption {
        /// The whole mount.
        mount: String,
        /// The text after the last colon.
        option: String,
    },
    /// Mount: the target is the jail's root.
    #[error("a mount cannot cover the jail's root; give another target, or the root as `path`")]
    MountOnRoot,
    /// Mount: where the jail has something of its own.
    #[error(
        "mount target {target} is in {taken}, which is private to every jail; give another target"
    )]
    MountTaken {
        /// The target.
        target: crate::JailPath,
        /// What it lies in.
        taken: &'static str,
    },
    /// Mount: two on one target.
    #[error("mount target {0} is given twice; give each mount its own target")]
    MountTwice(crate::JailPath),
    /// Mount: too many.
    #[error(
        "there are {count} `mounts`, at most {max} are allowed; mount a common parent directory"
    )]
    MountTooMany {
        /// How many.
        count: usize,
        /// The most.
        max: usize,
    },
    /// Hostname: malformed.
    #[error(
        "`hostname` {0:?} is not a host name; use letters, digits, '-' and '.', at most 64 in all"
    )]
    Hostname(String),
    /// A destination that is none.
    #[error(
        "`allow` entry {0:?} is not a destination; give HOST:PORT, like api.example.com:443 or [2001:db8::1]:443"
    )]
    Destination(String),
    /// Values of a new jail, with one that exists already.
    #[error(
        "`{value}` applies to a new jail, and jail {name} exists already; remove it, or replace `name` by `path` to create a jail"
    )]
    SetupWithName {
        /// What was given.
        value: &'static str,
        /// The jail.
        name: crate::JailName,
    },
    /// Values of a jail, without one.
    #[error("`{0}` needs a jail; add `path`, or remove `{0}`")]
    SetupWithoutJail(&'static str),
    /// Network both filtered and of another kind.
    #[error("`allow` filters the jail's network and conflicts with `ip4` {0}; remove one of them")]
    AllowWithIp4(String),
    /// Filtering takes the proxy.
    #[error(
        "`allow` needs the program colibri-proxy, which was not found; install it beside colibri-daemon, or remove `allow`"
    )]
    AllowWithoutProxy,
    /// No filter for jails of FreeBSD.
    #[error(
        "`allow` is not possible with FreeBSD jails; set `ip4` to addresses and filter them with pf(4), or to disable for no network"
    )]
    AllowOnFreebsd,
    /// Memory: malformed.
    #[error("memory {0:?} is not a size; give bytes, or a text like 512M or 2G")]
    SizeMalformed(String),
    /// Processors: malformed.
    #[error("cpu {0:?} is not a number of processors; give one like 2 or 0.5")]
    CpusMalformed(String),
    /// Wall time: malformed.
    #[error(
        "{0:?} is not a duration; give one like 90s, 30m or 1h30m, or a whole number of seconds"
    )]
    WallTimeMalformed(String),
    /// A limit with which nothing runs.
    #[error("limit `{name}` is too small for any program; give at least {least}")]
    LimitTooSmall {
        /// Which.
        name: &'static str,
        /// The least.
        least: String,
    },
    /// A limit that this engine cannot hold an agent to.
    #[error(
        "limit `{name}` cannot be enforced: {why}, or accept the missing limit with `best_effort`"
    )]
    LimitUnenforced {
        /// Which.
        name: &'static str,
        /// Why.
        why: String,
    },
    /// An engine that does not exist.
    #[error("engine {0:?} is unknown; give freebsd or bubblewrap")]
    UnknownEngine(String),
    /// A signal that does not exist, or must not be sent.
    #[error(
        "signal {0:?} is unknown; give a name like TERM, INT, HUP, QUIT, KILL, USR1, USR2, CONT, STOP or a portable number"
    )]
    UnknownSignal(String),
    /// A process id that is none.
    #[error("process id {0} cannot belong to an agent; give 2 or more")]
    BadPid(u32),
}
