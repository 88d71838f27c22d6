//! What a sandbox of Linux shows and denies, besides its mounts.

use std::fmt;
use std::str::FromStr;

use crate::JailError;

/// The part of the host that a sandbox with the root `/` shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum View {
    /// Programs, libraries and settings without secrets; everything else is private and empty at first.
    #[default]
    Minimal,
    /// Everything that the agent's user can read, without masked paths.
    Host,
}

impl View {
    /// All names, as in requests.
    pub const NAMES: &[&str] = &["minimal", "host"];

    /// Returns the name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Minimal => "minimal",
            Self::Host => "host",
        }
    }
}

impl FromStr for View {
    type Err = JailError;

    fn from_str(text: &str) -> Result<Self, JailError> {
        match text {
            "minimal" => Ok(Self::Minimal),
            "host" => Ok(Self::Host),
            _ => Err(unknown("view", text, Self::NAMES)),
        }
    }
}

/// The network of a new jail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Network {
    /// Only a separate loopback interface.
    None,
    /// The network of the host.
    Host,
    /// The destinations of `allow`, through a proxy.
    Allow,
}

impl Network {
    /// All names, as in requests.
    pub const NAMES: &[&str] = &["none", "host", "allow"];
}

impl FromStr for Network {
    type Err = JailError;

    fn from_str(text: &str) -> Result<Self, JailError> {
        match text {
            "none" => Ok(Self::None),
            "host" => Ok(Self::Host),
            "allow" => Ok(Self::Allow),
            _ => Err(unknown("network", text, Self::NAMES)),
        }
    }
}

/// A restriction of every sandbox, which a request can lift by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Restriction {
    /// No connection to Unix sockets that the sandbox did not make, and no mount of one.
    UnixSockets,
    /// No sockets besides those of Unix, IPv4, IPv6 and netlink(7) for routes.
    SocketFamilies,
    /// No keyrings(7) of the kernel.
    Keyrings,
    /// No io_uring(7).
    IoUring,
    /// No userfaultfd(2), perf_event_open(2), bpf(2) and kexec_load(2).
    KernelInterfaces,
    /// No input into a terminal by TIOCSTI and TIOCLINUX (ioctl_tty(2)).
    TerminalInput,
    /// No set-user-ID and set-group-ID modes and device nodes, and no openat2(2), whose modes a filter cannot see.
    SetIdFiles,
    /// No user namespaces, and so no sandbox in the sandbox. Lifting it lifts [`Self::Landlock`] too.
    UserNamespaces,
    /// No writes outside of the writable mounts, by landlock(7) too.
    Landlock,
}

impl Restriction {
    /// All restrictions.
    pub const ALL: &[Self] = &[
        Self::UnixSockets,
        Self::SocketFamilies,
        Self::Keyrings,
        Self::IoUring,
        Self::KernelInterfaces,
        Self::TerminalInput,
        Self::SetIdFiles,
        Self::UserNamespaces,
        Self::Landlock,
    ];

    /// Returns the name, as in requests.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::UnixSockets => "unix-sockets",
            Self::SocketFamilies => "socket-families",
            Self::Keyrings => "keyrings",
            Self::IoUring => "io-uring",
            Self::KernelInterfaces => "kernel-interfaces",
            Self::TerminalInput => "terminal-input",
            Self::SetIdFiles => "set-id-files",
            Self::UserNamespaces => "user-namespaces",
            Self::Landlock => "landlock",
        }
    }
}

impl fmt::Display for Restriction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Restriction {
    type Err = JailError;

    fn from_str(text: &str) -> Result<Self, JailError> {
        let mut all = Self::ALL.iter().copied();
        all.find(|restriction| restriction.name() == text)
            .ok_or_else(|| {
                let names: Vec<&str> = Self::ALL.iter().map(|one| one.name()).collect();
                unknown("restriction", text, &names)
            })
    }
}

fn unknown(what: &'static str, text: &str, names: &[&str]) -> JailError {
    let problem = format!("is unknown; give one of {}", names.join(", "));
    JailError::invalid(what, text, problem)
}

/// The user that an agent's processes have on the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum HostUser {
    /// The user that starts the sandbox.
    #[default]
    Caller,
    /// These ids.
    Ids {
        /// User id, never 0.
        uid: u32,
        /// Group id, never 0.
        gid: u32,
    },
    /// A user id that no other process has.
    Private,
}

/// A path of the host that is opened once for all runs of an agent, and the number of its descriptor in the engine's
/// program.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HeldPath {
    /// Number of the descriptor.
    pub descriptor: i32,
    /// The path.
    pub path: crate::JailPath,
}

/// What stands for a protected path that does not exist while an agent runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placeholder {
    /// Nothing: the path is protected only if it exists.
    Nothing,
    /// A socket that no process listens on: git and other tools ignore it, and opening it fails.
    Socket,
    /// A file with this content.
    File(&'static str),
    /// An empty directory.
    Directory,
}

/// Names in a writable mount that tools of the user execute or obey later. They are read-only, except a directory `.git`, in
/// which [`PROTECTED_IN_GIT`] are.
pub const PROTECTED_PATHS: &[(&str, Placeholder)] = &[
    (GIT_DIRECTORY, Placeholder::Directory),
    (".gitmodules", Placeholder::Socket),
    (".gitconfig", Placeholder::Socket),
    (".envrc", Placeholder::Socket),
    (".vscode", Placeholder::Directory),
    (".idea", Placeholder::Directory),
    (".claude", Placeholder::Directory),
    (".pi", Placeholder::Directory),
    (".codex", Placeholder::Directory),
    (".agents", Placeholder::Directory),
    (".cursor", Placeholder::Directory),
    (".gemini", Placeholder::Directory),
    (".devcontainer", Placeholder::Directory),
    (".mcp.json", Placeholder::Socket),
    (".husky", Placeholder::Directory),
    (".bashrc", Placeholder::Socket),
    (".bash_profile", Placeholder::Socket),
    (".bash_login", Placeholder::Socket),
    (".bash_logout", Placeholder::Socket),
    (".profile", Placeholder::Socket),
    (".zshenv", Placeholder::Socket),
    (".zprofile", Placeholder::Socket),
    (".zshrc", Placeholder::Socket),
    (".zlogin", Placeholder::Socket),
    (".zlogout", Placeholder::Socket),
];

/// Directory of a git repository in its working tree.
pub const GIT_DIRECTORY: &str = ".git";

/// Names in a directory `.git` that are read-only. `commondir` names the directory of `config` and `hooks`
/// (gitrepository-layout(5)); this content names the same directory. The locks prevent that git replaces `config` by a file that no
/// mount protects.
pub const PROTECTED_IN_GIT: &[(&str, Placeholder)] = &[
    ("config", Placeholder::Socket),
    ("config.worktree", Placeholder::Socket),
    ("config.lock", Placeholder::Socket),
    ("config.worktree.lock", Placeholder::Socket),
    ("hooks", Placeholder::Directory),
    ("commondir", Placeholder::File(".\n")),
    ("modules", Placeholder::Directory),
    ("worktrees", Placeholder::Directory),
    ("gitdir", Placeholder::Nothing),
    ("remotes", Placeholder::Socket),
    ("branches", Placeholder::Socket),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_and_unknown_ones_listed() {
        for restriction in Restriction::ALL {
            assert_eq!(restriction.name().parse(), Ok(*restriction));
        }
        for (error, expected) in [
            (
                "x".parse::<Restriction>().unwrap_err(),
                "restriction \"x\" is unknown; give one of unix-sockets, socket-families, keyrings",
            ),
            (
                "".parse::<View>().unwrap_err(),
                "view \"\" is unknown; give one of minimal, host",
            ),
            (
                "all".parse::<Network>().unwrap_err(),
                "network \"all\" is unknown; give one of none, host, allow",
            ),
        ] {
            assert!(error.to_string().starts_with(expected), "{error}");
        }
        for name in View::NAMES {
            assert_eq!(name.parse::<View>().map(View::name), Ok(*name));
        }
    }

    #[test]
    fn protected_paths_are_plain_and_unique() {
        let mut names: Vec<&str> = PROTECTED_PATHS.iter().map(|(name, _)| *name).collect();
        assert!(names.iter().all(|name| !name.contains('/')));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), PROTECTED_PATHS.len());
    }
}
