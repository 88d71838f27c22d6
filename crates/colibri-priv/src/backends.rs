//! The two backends that elevate: FreeBSD's mdo and Colibri's own helper.

use std::path::Path;

use async_trait::async_trait;
use colibri_jail_core::{Bubblewrap, CommandLine, JailEngine, JailOp, JailSetup};

use crate::checks::executable;
use crate::{Finding, PrivBackend, PrivError, preflight};

/// FreeBSD's mdo(1), allowed by rules of mac_do(4). The rules know identities and no commands: whoever may
/// use it is root, so it is for single-operator machines.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mdo;

const MDO: &str = "/usr/bin/mdo";

#[async_trait]
impl PrivBackend for Mdo {
    fn name(&self) -> &str {
        "mdo"
    }

    /// `-i` alone makes the user root and leaves the groups as they are (mdo(1)), which asks mac_do(4) for the
    /// least: a rule for the uid is enough, on 14 (`uid=1001:0`) as on 15 (`uid=1001>uid=0`, whose default is
    /// that the groups stay). A rule on 15 that speaks of groups must allow the present ones too:
    /// `uid=1001>uid=0,gid=0` refuses `-i`, `uid=1001>uid=0,gid=0,gid=.,+gid=.` does not. `-u root` would ask
    /// for all of root's login groups, and `-g` is unknown to 14.2. Behind `--` nothing is an option of mdo's.
    fn elevate(&self, op: &JailOp, engine: &JailEngine) -> Result<CommandLine, PrivError> {
        Ok(engine.command_line(op)?.prefixed(MDO, ["-i", "--"])?)
    }

    async fn preflight(&self) -> Vec<Finding> {
        let mdo = executable(
            MDO,
            "mdo comes with FreeBSD 14.2 and later; elsewhere set COLIBRI_JAIL_PRIV_MODE",
        );
        std::iter::once(mdo).chain(preflight::mac_do()).collect()
    }
}

/// Colibri's setuid program: it takes typed verbs, checks them against a policy of root's, and does them
/// itself. The words are the contract in docs/helper-protocol.md.
#[derive(Debug, Clone)]
pub struct Helper {
    program: String,
}

impl Helper {
    /// A helper at an absolute path. Another one is refused when it is used: it would be searched in `PATH` or
    /// in the agent's working directory.
    #[must_use]
    pub fn new(program: &str) -> Self {
        Self {
            program: program.to_owned(),
        }
    }
}

#[async_trait]
impl PrivBackend for Helper {
    fn name(&self) -> &str {
        "helper"
    }

    fn elevate(&self, op: &JailOp, engine: &JailEngine) -> Result<CommandLine, PrivError> {
        if !self.program.starts_with('/') {
            return Err(PrivError::HelperPath(self.program.clone()));
        }
        // What bubblewrap has no command for, the helper does itself on Linux: it enters a sandbox of root's that
        // stands for a persistent jail, and ends one that it made.
        let own = matches!(
            (engine, op),
            (
                JailEngine::Bubblewrap(_),
                JailOp::Attach { .. } | JailOp::Remove { .. }
            )
        );
        if !own {
            engine.check(op)?;
        }
        let mut words: Vec<String> = Vec::new();
        let mut option = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                words.extend([format!("--{name}"), value]);
            }
        };
        let (verb, command) = match op {
            JailOp::Attach {
                name,
                user,
                workdir,
                command,
            } => {
                option("jail", Some(name.to_string()));
                option("user", user.as_ref().map(ToString::to_string));
                option("workdir", workdir.as_ref().map(ToString::to_string));
                ("attach", Some(command.clone()))
            }
            JailOp::Create {
                name,
                path,
                ip4,
                user,
                workdir,
                setup,
                command,
            } => {
                if *setup != JailSetup::default() {
                    return Err(PrivError::HelperSetup);
                }
                option("jail", Some(name.to_string()));
                option("path", Some(path.to_string()));
                option("ip4", Some(ip4.to_string()));
                if let JailEngine::Bubblewrap(Bubblewrap { hidden, .. }) = engine {
                    for directory in hidden {
                        option("hide", Some(directory.to_string()));
                    }
                }
                option("user", user.as_ref().map(ToString::to_string));
                option("workdir", workdir.as_ref().map(ToString::to_string));
                ("create", Some(command.clone()))
            }
            JailOp::Signal { jail, pids, signal } => {
                option("jail", jail.as_ref().map(ToString::to_string));
                option("signal", Some(signal.to_string()));
                for pid in pids {
                    option("pid", Some(pid.to_string()));
                }
                ("signal", None)
            }
            JailOp::Remove { name } => {
                option("jail", Some(name.to_string()));
                ("remove", None)
            }
            JailOp::Unmount { .. } | JailOp::Limit { .. } | JailOp::Unlimit { .. } => {
                return Err(PrivError::NoVerb {
                    doing: "unmount, or to limit jails",
                    instead: "leave mounts and limits out, or use another privilege backend",
                });
            }
            JailOp::List => {
                return Err(PrivError::NoVerb {
                    doing: "list jails",
                    instead: "run the listing as it is, it needs no root",
                });
            }
        };
        words.insert(0, verb.to_owned());
        match command {
            Some(command) => {
                words.push("--".to_owned());
                Ok(command.prefixed(self.program.clone(), words)?)
            }
            None => Ok(CommandLine::new(self.program.clone(), words)?),
        }
    }

    async fn preflight(&self) -> Vec<Finding> {
        preflight::helper(Path::new(&self.program))
    }
}
