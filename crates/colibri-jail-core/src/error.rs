//! Validation errors, each with a hint. Values are untrusted and shown escaped. Messages name fields of
//! [`crate::JailConfig`] and [`crate::Limits`] in backquotes, so that a command line can replace them by its flags.

/// Error for a program or arguments that execve(2) does not accept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandLineError {
    /// The program is empty.
    #[error("the program name is empty; give a program to run")]
    EmptyProgram,
    /// A string contains a NUL byte.
    #[error("{0} contains a NUL byte, which execve(2) cannot pass; remove it")]
    Nul(String),
    /// One argument or variable exceeds the length that execve(2) accepts.
    #[error(
        "{what} has {bytes} bytes, more than the {max} that execve(2) takes in one string; pass it in a file or on standard input"
    )]
    StringTooLong {
        /// The argument or the variable.
        what: String,
        /// Its length, in bytes.
        bytes: usize,
        /// Maximum length, in bytes.
        max: usize,
    },
    /// Arguments and environment together exceed the length that execve(2) accepts.
    #[error(
        "arguments and environment have {bytes} bytes, more than the {max} that execve(2) takes here (ARG_MAX); pass them in a file or on standard input"
    )]
    TooLong {
        /// Their length, including one pointer for each string, in bytes.
        bytes: usize,
        /// Maximum length, in bytes.
        max: usize,
    },
    /// The wrapping program accepts fewer arguments.
    #[error(
        "{count} arguments exceed the {max} that {program} accepts, including its options; pass them in a file or on standard input"
    )]
    TooMany {
        /// Number of arguments.
        count: usize,
        /// The wrapping program.
        program: String,
        /// Maximum number of arguments.
        max: usize,
    },
}

/// Error for an invalid or unsupported confinement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JailError {
    /// The umask is not an octal permission mask.
    #[error("umask {0:?} is invalid: it is not an octal number up to 777; write it like 022")]
    Umask(String),
    /// Jail name: empty.
    #[error("the jail name is empty; give a name of letters, digits, '-' and '_'")]
    NameEmpty,
    /// Jail name: jexec(8) would parse it as an option.
    #[error(
        "jail name {0:?} begins with '-': jexec(8) would parse it as an option; start it with a letter, a digit or '_'"
    )]
    NameLeadingDash(String),
    /// Jail name: jexec(8) would parse it as a jail id.
    #[error(
        "jail name {0:?} is all digits: jexec(8) would parse it as a jail id; give the jail's name"
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
    /// Jail name: another character.
    #[error("jail name {name:?} contains {found:?}; use letters, digits, '-' and '_' only")]
    NameCharacter {
        /// The name.
        name: String,
        /// The first invalid character.
        found: char,
    },
    /// Jail name: longer than the kernel stores.
    #[error("the jail name has {length} bytes, at most {max} are allowed; shorten it")]
    NameTooLong {
        /// Its length, in bytes.
        length: usize,
        /// Maximum length, in bytes.
        max: usize,
    },
    /// Path: empty.
    #[error("the path is empty; give an absolute path")]
    PathEmpty,
    /// Path: relative.
    #[error("path {0:?} is relative; give an absolute path, which begins with '/'")]
    PathRelative(String),
    /// Path: not normalized.
    #[error("path {0:?} is not normalized; remove '.', '..', doubled and trailing '/'")]
    PathNotNormal(String),
    /// Path: NUL.
    #[error("path {0:?} contains a NUL byte; remove it")]
    PathNul(String),
    /// Path: control characters.
    #[error("path {0:?} contains a control character; rename the directory")]
    PathControl(String),
    /// Path: longer than the kernel accepts.
    #[error("the path has {length} bytes, at most {max} are allowed; shorten it")]
    PathTooLong {
        /// Its length, in bytes.
        length: usize,
        /// Maximum length, in bytes.
        max: usize,
    },
    /// Path: contains syntax of jail(8).
    #[error("path {path:?} contains {found:?}, which is syntax for jail(8); rename the directory")]
    PathSyntax {
        /// The path.
        path: String,
        /// The first invalid character.
        found: char,
    },
    /// ip4: empty.
    #[error("`ip4` is empty; give inherit, disable, new, or addresses separated by ','")]
    Ip4Empty,
    /// ip4: an entry is not an address.
    #[error(
        "`ip4` entry {0:?} is not an IPv4 address; give inherit, disable, new, or addresses like 192.0.2.7 separated by ','"
    )]
    Ip4Malformed(String),
    /// ip4: the same address twice.
    #[error("`ip4` address {0} is given twice; give it once")]
    Ip4Duplicate(std::net::Ipv4Addr),
    /// ip4: not an address of a host.
    #[error("`ip4` address {0} cannot belong to a jail; give the address of an interface")]
    Ip4Unusable(std::net::Ipv4Addr),
    /// ip4 with a persistent jail.
    #[error(
        "`ip4` applies to a new jail, and jail {0} exists already; remove `ip4`, or replace `name` by `path` to create a jail"
    )]
    Ip4WithName(crate::JailName),
    /// ip4 without a jail.
    #[error("`ip4` needs a jail; add `path`, or remove `ip4`")]
    Ip4WithoutJail,
    /// User: empty.
    #[error("`user` is empty; give a name, UID or UID:GID")]
    UserEmpty,
    /// User: programs would parse it as an option.
    #[error("`user` {0:?} begins with '-', like an option; give a name, UID or UID:GID")]
    UserLeadingDash(String),
    /// User: longer than the system stores.
    #[error("the `user` name has {length} bytes, at most {max} are allowed; give another user")]
    UserTooLong {
        /// Its length, in bytes.
        length: usize,
        /// Maximum length, in bytes.
        max: usize,
    },
    /// User: an invalid character.
    #[error("`user` {user:?} contains {found:?}; use letters, digits, '-', '_' and '.' only")]
    UserCharacter {
        /// The user.
        user: String,
        /// The first invalid character.
        found: char,
    },
    /// User: a number out of range.
    #[error("`user` id {0:?} is out of range; give 0 to 4294967294")]
    UserId(String),
    /// User without a jail.
    #[error("`user` needs a jail; add `name` or `path`, or remove `user`")]
    UserWithoutJail,
    /// User: a number, and FreeBSD takes names.
    #[error(
        "`user` {0} is a number, and jexec(8) and jail(8) take names; give the name of a user inside the jail"
    )]
    UserNumberOnFreebsd(String),
    /// User: a name, and bubblewrap takes numbers.
    #[error("`user` {0} is a name, and bubblewrap takes numbers; give UID or UID:GID")]
    UserNameOnBubblewrap(String),
    /// Persistent jail with bubblewrap.
    #[error(
        "jail {0} cannot be entered: bubblewrap has no persistent jails; replace `name` by `path`, the root directory of a sandbox"
    )]
    NameOnBubblewrap(crate::JailName),
    /// ip4: bubblewrap supports `inherit` and `disable` only.
    #[error(
        "`ip4` {0} is not possible with bubblewrap; give disable for no network, or inherit for the host's network"
    )]
    Ip4OnBubblewrap(String),
    /// The engine does not support the operation.
    #[error("engine {engine} does not support the operation {operation}; {hint}")]
    Unsupported {
        /// The engine.
        engine: String,
        /// The operation, see [`crate::JailOp::kind`].
        operation: &'static str,
        /// A hint that starts with a verb.
        hint: &'static str,
    },
    /// Masked path with a FreeBSD jail.
    #[error("path {0} cannot be masked in a FreeBSD jail; give a root without it as `path`")]
    MaskOnFreebsd(crate::JailPath),
    /// Mount: malformed text.
    #[error(
        "mount {0:?} has the wrong form; give SOURCE or SOURCE:TARGET, and :ro or :rw after it if needed"
    )]
    MountMalformed(String),
    /// Mount: unknown option.
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
    /// Mount: the target is in a private directory of the jail.
    #[error(
        "mount target {target} is in {taken}, which is private to every jail; give another target"
    )]
    MountTaken {
        /// The target.
        target: crate::JailPath,
        /// The private directory.
        taken: &'static str,
    },
    /// Mount: duplicate target.
    #[error("mount target {0} is given twice; give each mount its own target")]
    MountTwice(crate::JailPath),
    /// Mount: too many mounts.
    #[error(
        "there are {count} `mounts`, at most {max} are allowed; mount a common parent directory"
    )]
    MountTooMany {
        /// Number of mounts.
        count: usize,
        /// Maximum number of mounts.
        max: usize,
    },
    /// Hostname: malformed.
    #[error(
        "`hostname` {0:?} is not a host name; use letters, digits, '-' and '.', at most 64 in all"
    )]
    Hostname(String),
    /// Destination: malformed.
    #[error(
        "`allow` entry {0:?} is not a destination; give HOST:PORT, like api.example.com:443 or [2001:db8::1]:443"
    )]
    Destination(String),
    /// Setting of a new jail with a persistent jail.
    #[error(
        "`{value}` applies to a new jail, and jail {name} exists already; remove it, or replace `name` by `path` to create a jail"
    )]
    SetupWithName {
        /// The setting.
        value: &'static str,
        /// The jail.
        name: crate::JailName,
    },
    /// Setting of a jail without a jail.
    #[error("`{0}` needs a jail; add `path`, or remove `{0}`")]
    SetupWithoutJail(&'static str),
    /// Both `allow` and `ip4`.
    #[error("`allow` filters the jail's network and conflicts with `ip4` {0}; remove one of them")]
    AllowWithIp4(String),
    /// `allow` without the proxy program.
    #[error(
        "`allow` needs the program colibri-proxy, which was not found; install it beside colibri-daemon, or remove `allow`"
    )]
    AllowWithoutProxy,
    /// `allow` with a FreeBSD jail.
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
    /// Limit: too small for any program.
    #[error("limit `{name}` is too small for any program; give at least {least}")]
    LimitTooSmall {
        /// The limit.
        name: &'static str,
        /// Minimum value.
        least: String,
    },
    /// Limit: cannot be enforced.
    #[error(
        "limit `{name}` cannot be enforced: {why}, or accept the missing limit with `best_effort`"
    )]
    LimitUnenforced {
        /// The limit.
        name: &'static str,
        /// The reason, as `CAUSE; HINT`.
        why: String,
    },
    /// No engine with this name.
    #[error("engine {name:?} is unknown; give one of {known}")]
    UnknownEngine {
        /// The requested name.
        name: String,
        /// The known names, separated by `, `.
        known: String,
    },
    /// Signal: unknown, or not allowed.
    #[error(
        "signal {0:?} is unknown; give a name like TERM, INT, HUP, QUIT, KILL, USR1, USR2, CONT, STOP or a portable number"
    )]
    UnknownSignal(String),
    /// Process id: 0, 1 or out of range.
    #[error("process id {0} cannot belong to an agent; give 2 or more")]
    BadPid(u32),
}
