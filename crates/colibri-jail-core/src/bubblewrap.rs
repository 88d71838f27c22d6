//! Command lines of bwrap(1): a root bound read-only, own namespaces, private /proc, /dev and /tmp.
//!
//! With `allow` the sandbox has no network. Before bwrap, colibri-proxy starts the part of itself that filters; in
//! the sandbox, before the agent, another part opens the port at which the agent finds it.

use crate::{CommandLine, Ip4Policy, JailError, JailOp, JailPath, JailUser};

const KILL: &str = "/bin/kill";
/// Where a filtered sandbox has the proxy program: in its private /dev, over which nothing can be mounted.
const PROXY_INSIDE: &str = "/dev/colibri-proxy";

/// Own namespaces, an end with the parent, no terminal to push input into (TIOCSTI, CVE-2017-5226), and no
/// capabilities: bwrap leaves a caller who is root all of them otherwise.
const ALWAYS: &[&str] = &[
    "--unshare-user",
    "--unshare-pid",
    "--unshare-ipc",
    "--unshare-uts",
    "--unshare-cgroup",
    "--die-with-parent",
    "--new-session",
    "--cap-drop",
    "ALL",
];

/// The bubblewrap engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bubblewrap {
    /// The program.
    pub program: JailPath,
    /// Directories inside the root that the agent finds empty: the sockets and state of whoever confines
    /// it, which would be a way out. They must exist; the caller knows.
    pub hidden: Vec<JailPath>,
    /// The `colibri-proxy` program, for agents that may connect to some places only.
    pub proxy: Option<JailPath>,
}

impl Default for Bubblewrap {
    fn default() -> Self {
        Self {
            program: JailPath::fixed("/usr/bin/bwrap"),
            hidden: Vec::new(),
            proxy: None,
        }
    }
}

impl Bubblewrap {
    pub(crate) fn command_line(&self, op: &JailOp) -> Result<CommandLine, JailError> {
        match op {
            JailOp::Attach { name, .. } => Err(JailError::NameOnBubblewrap(name.clone())),
            JailOp::Create {
                path,
                ip4,
                user,
                workdir,
                setup,
                command,
                ..
            } => {
                let proxy = match (&self.proxy, setup.allow.is_empty()) {
                    (_, true) => None,
                    (Some(proxy), false) => Some(proxy),
                    (None, false) => return Err(JailError::AllowWithoutProxy),
                };
                let mut args: Vec<String> = ALWAYS.iter().map(|word| (*word).to_owned()).collect();
                match ip4 {
                    Ip4Policy::Inherit if proxy.is_none() => {}
                    Ip4Policy::Inherit | Ip4Policy::Disable => {
                        args.push("--unshare-net".to_owned());
                    }
                    other => return Err(JailError::Ip4OnBubblewrap(other.to_string())),
                }
                args.extend(["--ro-bind", path.as_str(), "/"].map(str::to_owned));
                args.extend(
                    ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"].map(str::to_owned),
                );
                for mount in &setup.mounts {
                    let bind = if mount.read_only {
                        "--ro-bind"
                    } else {
                        "--bind"
                    };
                    args.extend(
                        [bind, mount.source.as_str(), mount.target.as_str()].map(str::to_owned),
                    );
                }
                if let Some(proxy) = proxy {
                    args.extend(["--ro-bind", proxy.as_str(), PROXY_INSIDE].map(str::to_owned));
                }
                for hidden in &self.hidden {
                    args.extend(["--tmpfs".to_owned(), hidden.to_string()]);
                }
                if let Some((uid, gid)) = user.as_ref().map(numbers).transpose()? {
                    args.extend(["--uid".to_owned(), uid.to_string()]);
                    args.extend(["--gid".to_owned(), gid.to_string()]);
                }
                if let Some(hostname) = &setup.hostname {
                    args.extend(["--hostname", hostname.as_str()].map(str::to_owned));
                }
                let workdir = workdir.as_ref().map_or("/", JailPath::as_str);
                args.extend(["--chdir", workdir, "--"].map(str::to_owned));
                let mut command = command.clone();
                if proxy.is_some() {
                    command = command.behind(PROXY_INSIDE, vec!["enter".to_owned()]);
                }
                command = command.behind(self.program.as_str(), args);
                if let Some(proxy) = proxy {
                    let mut words = vec!["run".to_owned()];
                    words.extend(setup.allow.iter().map(ToString::to_string));
                    words.push("--".to_owned());
                    command = command.behind(proxy.as_str(), words);
                }
                Ok(command)
            }
            JailOp::Signal { pids, signal, .. } => {
                let mut args = vec!["-s".to_owned(), signal.to_string()];
                args.extend(pids.iter().map(ToString::to_string));
                Ok(CommandLine::trusted(KILL, args))
            }
            JailOp::Remove { .. } => Err(JailError::OpOnBubblewrap("remove")),
            JailOp::Unmount { .. } => Err(JailError::OpOnBubblewrap("unmount")),
            JailOp::Limit { .. } | JailOp::Unlimit { .. } => {
                Err(JailError::OpOnBubblewrap("limit"))
            }
            JailOp::List => Err(JailError::OpOnBubblewrap("list")),
        }
    }
}

/// Of names only root's number is the same everywhere.
fn numbers(user: &JailUser) -> Result<(u32, u32), JailError> {
    match user {
        JailUser::Id { uid, gid } => Ok((*uid, gid.unwrap_or(*uid))),
        JailUser::Name(name) if name.as_ref() == "root" => Ok((0, 0)),
        JailUser::Name(name) => Err(JailError::UserNameOnBubblewrap(name.as_ref().to_owned())),
    }
}
