//! Command lines of jexec(8), jail(8), jls(8) and kill(1), as FreeBSD 15 reads them.
//!
//! jexec's option parsing ends at the jail's name, which cannot begin with `-`. jail(8) takes everything
//! behind `command=` for the command's own words when the jail is described on the command line; for a jail
//! of jail.conf(5) it would split the first word and give it to a shell instead. IPv6 is never asked for, and
//! a jail that does not ask has none (sys/kern/kern_jail.c), so `ip4=disable` leaves it Unix sockets only.

use crate::{CommandLine, Ip4Policy, JailError, JailOp, JailPath, JailUser, Limits};

const JEXEC: &str = "/usr/sbin/jexec";
const JAIL: &str = "/usr/sbin/jail";
const JLS: &str = "/usr/sbin/jls";
const KILL: &str = "/bin/kill";
const UMOUNT: &str = "/sbin/umount";
const RCTL: &str = "/usr/bin/rctl";

/// Characters that are syntax in jail.conf(5) and in lists of values. On its command line jail(8) splits a
/// `path=` at the first `=` only, but what it and others print of a jail (jls(8), `-J`, rc scripts) is read
/// again as such text, so they are refused rather than trusted to arrive. An `=` behind the first is plain.
const SYNTAX: &str = ",\"'`$\\;#{}";

pub(crate) fn command_line(op: &JailOp) -> Result<CommandLine, JailError> {
    match op {
        JailOp::Attach {
            name,
            user,
            workdir,
            command,
        } => {
            let mut args = Vec::new();
            if let Some(workdir) = workdir {
                args.extend(["-d".to_owned(), workdir.to_string()]);
            }
            if let Some(user) = user {
                args.extend(["-U".to_owned(), name_of(user)?]);
            }
            // No -l: it would clear the environment.
            args.push(name.to_string());
            Ok(command.clone().behind(JEXEC, args))
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
            if !setup.allow.is_empty() {
                return Err(JailError::AllowOnFreebsd);
            }
            // -q: without it jail(8) may print "NAME: created" into the agent's output.
            let mut args = vec!["-q".to_owned(), "-c".to_owned(), format!("name={name}")];
            args.push(format!("path={}", value(path)?));
            match ip4 {
                Ip4Policy::Addresses(_) => {
                    args.extend(["ip4=new".to_owned(), format!("ip4.addr={ip4}")]);
                }
                word => args.push(format!("ip4={word}")),
            }
            if let Some(hostname) = &setup.hostname {
                args.push(format!("host.hostname={hostname}"));
            }
            // A line of fstab(5) each. jail(8) itself refuses a mount point that a link leads out of the root.
            for mount in &setup.mounts {
                let target = path.join(&mount.target);
                let mode = if mount.read_only { "ro" } else { "rw" };
                args.push(format!(
                    "mount={} {} nullfs {mode} 0 0",
                    value(&mount.source)?,
                    value(&target)?
                ));
            }
            if let Some(user) = user {
                args.push(format!("exec.jail_user={}", name_of(user)?));
            }
            let (program, rest) = command.clone().into_parts();
            match workdir {
                None => args.push(format!("command={program}")),
                // jail(8) starts the command in the jail's root and has no parameter for another
                // directory. The shell gets the directory as a word, never as a part of its script.
                Some(workdir) => {
                    args.push("command=/bin/sh".to_owned());
                    args.extend(["-c", "cd -- \"$0\" && exec \"$@\""].map(str::to_owned));
                    args.extend([workdir.to_string(), program]);
                }
            }
            args.extend(rest);
            Ok(CommandLine::trusted(JAIL, args))
        }
        JailOp::Signal { pids, signal, .. } => {
            let mut args = vec!["-s".to_owned(), signal.to_string()];
            args.extend(pids.iter().map(ToString::to_string));
            Ok(CommandLine::trusted(KILL, args))
        }
        // -R and not -r: a jail of ours has no configuration with stop actions (jail(8)). It may still send
        // TERM first and wait up to stop.timeout, 10 s by default, before the kernel kills what is left.
        JailOp::Remove { name } => Ok(CommandLine::trusted(
            JAIL,
            vec!["-R".to_owned(), name.to_string()],
        )),
        // jail(8) undoes its mounts only where it removes the jail itself, and ours go with their last process.
        JailOp::Unmount { target } => Ok(CommandLine::trusted(
            UMOUNT,
            vec![value(target)?.to_owned()],
        )),
        JailOp::Limit { name, limits } => {
            let mut args = vec!["-a".to_owned()];
            args.extend(rules(limits).map(|rule| format!("jail:{name}:{rule}")));
            Ok(CommandLine::trusted(RCTL, args))
        }
        JailOp::Unlimit { name } => Ok(CommandLine::trusted(
            RCTL,
            vec!["-r".to_owned(), format!("jail:{name}")],
        )),
        JailOp::List => Ok(CommandLine::trusted(JLS, vec!["name".to_owned()])),
    }
}

/// What rctl(8) can hold a jail to: bytes in memory, processes, percent of one processor.
fn rules(limits: &Limits) -> impl Iterator<Item = String> {
    [
        limits
            .memory
            .map(|memory| format!("memoryuse:deny={}", memory.0)),
        limits
            .processes
            .map(|count| format!("maxproc:deny={count}")),
        limits
            .cpu
            .map(|cpu| format!("pcpu:deny={}", cpu.0.div_ceil(10))),
    ]
    .into_iter()
    .flatten()
}

/// jexec -U and exec.jail_user look names up in the jail's own user table.
fn name_of(user: &JailUser) -> Result<String, JailError> {
    match user {
        JailUser::Name(name) => Ok(name.as_ref().to_owned()),
        JailUser::Id { .. } => Err(JailError::UserNumberOnFreebsd(user.to_string())),
    }
}

fn value(path: &JailPath) -> Result<&str, JailError> {
    let text = path.as_str();
    match text
        .chars()
        .find(|c| c.is_whitespace() || SYNTAX.contains(*c))
    {
        Some(found) => Err(JailError::PathSyntax {
            path: text.to_owned(),
            found,
        }),
        None => Ok(text),
    }
}
