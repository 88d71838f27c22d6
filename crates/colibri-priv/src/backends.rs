//! The two backends that elevate: mdo(1) of FreeBSD and Colibri's setuid helper.

use async_trait::async_trait;
use colibri_jail_core::{CommandLine, JailEngine, JailOp};

use crate::{Finding, PrivBackend, PrivError, preflight};

/// mdo(1) of FreeBSD, with the rules of mac_do(4). The rules know identities, not commands: a user who may run mdo has
/// full root rights, so it suits single-operator machines.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mdo;

const MDO: &str = "/usr/bin/mdo";

#[async_trait]
impl PrivBackend for Mdo {
    fn name(&self) -> &str {
        "mdo"
    }

    /// `-i` alone sets the uid to root and keeps the groups (mdo(1)), which needs the fewest rights from mac_do(4): a
    /// rule for the uid is enough, on 14 (`uid=1001:0`) and on 15 (`uid=1001>uid=0`, where the groups stay by default).
    /// A rule on 15 that lists groups must allow the present ones too: `uid=1001>uid=0,gid=0` refuses `-i`,
    /// `uid=1001>uid=0,gid=0,gid=.,+gid=.` does not. `-u root` would require all login groups of root, and 14.2 has no
    /// `-g`. mdo parses no options after `--`.
    fn elevate(&self, op: &JailOp, engine: &dyn JailEngine) -> Result<CommandLine, PrivError> {
        Ok(engine.command_line(op)?.prefixed(MDO, ["-i", "--"])?)
    }

    async fn preflight(&self) -> Vec<Finding> {
        preflight::mdo(MDO, &["-i", "--", "/usr/bin/true"]).await
    }
}

/// Colibri's setuid program. It takes typed operations, checks them against a root-owned policy, and executes them
/// itself. docs/helper-protocol.md specifies the arguments.
#[derive(Debug, Clone)]
pub struct Helper {
    program: String,
}

impl Helper {
    /// Creates a backend for the helper at this path. A relative path is refused on use, because it would be searched
    /// in `PATH` or in the agent's working directory.
    #[must_use]
    pub fn new(program: &str) -> Self {
        Self {
            program: program.to_owned(),
        }
    }
}

/// Appends an option of the helper once for each value.
fn add<T: ToString>(args: &mut Vec<String>, option: &str, values: impl IntoIterator<Item = T>) {
    for value in values {
        args.extend([option.to_owned(), value.to_string()]);
    }
}

#[async_trait]
impl PrivBackend for Helper {
    fn name(&self) -> &str {
        "helper"
    }

    fn elevate(&self, op: &JailOp, engine: &dyn JailEngine) -> Result<CommandLine, PrivError> {
        if !self.program.starts_with('/') {
            return Err(PrivError::Invalid(format!(
                "helper path {:?} is not absolute; give an absolute path like /usr/local/libexec/colibri-jail-helper",
                self.program
            )));
        }
        // The helper removes sandboxes that it created, also where the engine has no command to remove one.
        if !matches!(op, JailOp::Remove { .. }) {
            engine.check(op)?;
        }
        let refuse =
            |operation: &str, hint: &str| Err(PrivError::unsupported(self.name(), operation, hint));
        // The protocol fixes the order of the options.
        let mut args = vec![op.kind().to_owned()];
        match op {
            JailOp::Attach {
                name,
                user,
                workdir,
                ..
            } => {
                add(&mut args, "--jail", [name]);
                add(&mut args, "--user", user);
                add(&mut args, "--workdir", workdir);
            }
            JailOp::Create { jail, workdir, .. } => {
                if let Some(field) = jail.first_root_field() {
                    let operation = format!("prepare a jail's root as `{field}` requests");
                    let hint =
                        "give a root that exists as `path`, or use the privilege backend mdo";
                    return refuse(&operation, hint);
                }
                let is_filtered = !jail.allow.is_empty();
                let unsupported = [
                    (!jail.mounts.is_empty(), "`mounts`"),
                    (jail.hostname.is_some(), "`hostname`"),
                    (
                        is_filtered && engine.outer_proxy().is_none(),
                        "`allow` for this engine",
                    ),
                ];
                if let Some((_, what)) = unsupported.into_iter().find(|(is_used, _)| *is_used) {
                    let hint = "remove it, or use another privilege backend";
                    return refuse(&format!("create jails with {what}"), hint);
                }
                add(&mut args, "--jail", [&jail.name]);
                add(&mut args, "--path", [&jail.path]);
                add(&mut args, "--ip4", [&jail.ip4]);
                add(&mut args, "--network", is_filtered.then_some("filtered"));
                add(&mut args, "--hide", &jail.masked);
                add(&mut args, "--user", &jail.user);
                add(&mut args, "--workdir", workdir);
            }
            JailOp::Signal { jail, pids, signal } => {
                add(&mut args, "--jail", jail);
                add(&mut args, "--signal", [signal]);
                add(&mut args, "--pid", pids);
            }
            JailOp::Remove { name } => add(&mut args, "--jail", [name]),
            JailOp::List => {
                let hint = "run the command without privilege, it needs no root";
                return refuse("list jails", hint);
            }
            JailOp::HostCommand { purpose, .. } => {
                let hint =
                    "remove `memory`, `processes` and `cpu`, or use another privilege backend";
                return refuse(purpose, hint);
            }
            other => return refuse(other.kind(), "use another privilege backend"),
        }
        match op.agent() {
            Some(agent) => {
                args.push("--".to_owned());
                Ok(agent.clone().prefixed(self.program.clone(), args)?)
            }
            None => Ok(CommandLine::new(self.program.clone(), args)?),
        }
    }

    async fn preflight(&self) -> Vec<Finding> {
        preflight::helper(&self.program).await
    }

    fn monitors(&self) -> bool {
        true
    }

    fn open_files_override(&self) -> Option<&'static str> {
        Some("the helper sets it; set it in the helper's policy, helper.toml(5)")
    }

    fn has_policy(&self) -> bool {
        true
    }
}
