//! The decision, as a pure function of the caller's rules and the request. No system call is made here.

use colibri_jail_core::{Ip4Policy, JailName, JailPath, JailUser, Signal};

use crate::log::plain;
use crate::policy::{Rule, allows_ip4};
use crate::request::{Request, Run};

/// What one rule allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grant<'a> {
    pub(crate) rule: &'a Rule,
    /// The user inside; none for verbs that run nothing.
    pub(crate) user: Option<JailUser>,
    /// The paths of the program that may be executed, the first that exists counts.
    pub(crate) programs: Vec<String>,
}

/// Why no rule allows a request: the last thing that was missing in the rule that came closest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("jail {0} is in no rule for this caller; jails = [\"{0}\"] would allow it")]
    Jail(String),
    #[error("root {0} is in no rule with this jail; roots = [\"{0}\"] would allow it")]
    Root(String),
    #[error("ip4 {0} is in no rule with this jail; ip4 = [{1}] would allow it")]
    Ip4(String, String),
    #[error("user {0} is in no rule with this jail; users = [\"{0}\"] would allow it")]
    User(String),
    #[error(
        "no user is named, and no rule with this jail has one; users = [\"NAME\"] would allow it"
    )]
    NoUser,
    #[error(
        "uid 0 or gid 0 outside of a FreeBSD jail is root's own; no policy allows it, give another user"
    )]
    RootUser,
    #[error("program {0} is in no rule with this jail; programs = [\"{1}\"] would allow it")]
    Program(String, String),
    #[error("signal {0} is in no rule with this jail; signals = [\"{0}\"] would allow it")]
    Signal(String),
    #[error("ip4 {0} is not possible on Linux; give inherit or disable")]
    Ip4OnLinux(String),
    #[error("cannot enter jail {0}: Linux has no persistent jails; use create")]
    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    AttachOnLinux(String),
    #[error("process {0} is not of an agent that this caller runs{1}; no policy allows it")]
    NotOwnProcess(u32, String),
    #[error("jail {0} was not made for this caller; no policy allows it")]
    NotOwnJail(String),
}

/// Numbers of a user where the host's tables decide them, as on Linux.
pub(crate) type Resolve<'a> = &'a dyn Fn(&JailUser) -> Option<(u32, u32)>;

/// Whether one of `rules` allows all of `request`.
pub(crate) fn decide<'a>(
    rules: &[&'a Rule],
    request: &Request,
    resolve: Resolve<'_>,
) -> Result<Grant<'a>, Refusal> {
    let mut closest = None;
    for rule in rules {
        match allows(rule, request, resolve) {
            Ok(grant) => return Ok(grant),
            Err(refusal) => closest = closest.max(Some(refusal)),
        }
    }
    Err(closest.unwrap_or(Refusal::NoUser))
}

fn allows<'a>(
    rule: &'a Rule,
    request: &Request,
    resolve: Resolve<'_>,
) -> Result<Grant<'a>, Refusal> {
    let nothing_runs = Grant {
        rule,
        user: None,
        programs: Vec::new(),
    };
    match request {
        Request::Attach { jail, run } => {
            in_jails(rule, jail)?;
            runs(rule, run, resolve)
        }
        Request::Create {
            jail,
            path,
            ip4,
            run,
            ..
        } => {
            in_jails(rule, jail)?;
            under_roots(rule, path)?;
            with_ip4(rule, ip4)?;
            runs(rule, run, resolve)
        }
        Request::Signal { jail, signal, .. } => {
            if let Some(jail) = jail {
                in_jails(rule, jail)?;
            }
            with_signal(rule, *signal)?;
            Ok(nothing_runs)
        }
        // Whose jail it is decides, and that is a record's to say; and everybody may know the own rules.
        Request::Remove { .. } | Request::Check => Ok(nothing_runs),
    }
}

/// Whether one rule allows the signal in the jail that a process was found to be in.
pub(crate) fn may_signal(rules: &[&Rule], jail: &JailName, signal: Signal) -> Result<(), Refusal> {
    let mut closest = None;
    for rule in rules {
        match in_jails(rule, jail).and_then(|()| with_signal(rule, signal)) {
            Ok(()) => return Ok(()),
            Err(refusal) => closest = closest.max(Some(refusal)),
        }
    }
    Err(closest.unwrap_or(Refusal::Signal(signal.to_string())))
}

fn in_jails(rule: &Rule, jail: &JailName) -> Result<(), Refusal> {
    let allowed = rule.jails.iter().any(|pattern| pattern.matches(jail));
    allowed
        .then_some(())
        .ok_or_else(|| Refusal::Jail(jail.to_string()))
}

fn under_roots(rule: &Rule, path: &JailPath) -> Result<(), Refusal> {
    let allowed = rule.roots.iter().any(|tree| tree.holds(path));
    allowed
        .then_some(())
        .ok_or_else(|| Refusal::Root(plain(path.as_str())))
}

fn with_ip4(rule: &Rule, ip4: &Ip4Policy) -> Result<(), Refusal> {
    if cfg!(target_os = "linux") && !matches!(ip4, Ip4Policy::Inherit | Ip4Policy::Disable) {
        return Err(Refusal::Ip4OnLinux(ip4.to_string()));
    }
    let line = || {
        let words: Vec<_> = ip4
            .to_string()
            .split(',')
            .map(|word| format!("{word:?}"))
            .collect();
        Refusal::Ip4(ip4.to_string(), words.join(", "))
    };
    allows_ip4(&rule.ip4, ip4).then_some(()).ok_or_else(line)
}

fn with_signal(rule: &Rule, signal: Signal) -> Result<(), Refusal> {
    let allowed = rule.signals.iter().any(|known| known.0 == signal);
    allowed
        .then_some(())
        .ok_or_else(|| Refusal::Signal(signal.to_string()))
}

fn runs<'a>(rule: &'a Rule, run: &Run, resolve: Resolve<'_>) -> Result<Grant<'a>, Refusal> {
    let user = match &run.user {
        None => rule.users.first().ok_or(Refusal::NoUser)?.0.clone(),
        Some(wanted) => {
            let same = |known: &JailUser| {
                known == wanted
                    || (resolves(known, resolve).is_some()
                        && resolves(known, resolve) == resolves(wanted, resolve))
            };
            if !rule.users.iter().any(|known| same(&known.0)) {
                return Err(Refusal::User(wanted.to_string()));
            }
            wanted.clone()
        }
    };
    // In a jail of FreeBSD's root is less than the host's; on Linux here it is the same.
    if cfg!(target_os = "linux")
        && let Some((uid, gid)) = resolves(&user, resolve)
        && (uid == 0 || gid == 0)
    {
        return Err(Refusal::RootUser);
    }
    let mut programs = run.candidates();
    programs.retain(|path| rule.programs.iter().any(|allowed| allowed.allows(path)));
    if programs.is_empty() {
        let path = match &run.candidates()[..] {
            [path] => plain(path),
            _ => plain(&format!("/usr/bin/{}", run.command.program())),
        };
        return Err(Refusal::Program(plain(run.command.program()), path));
    }
    Ok(Grant {
        rule,
        user: Some(user),
        programs,
    })
}

/// On FreeBSD a user is of the jail's own table, so names are compared as they are written.
fn resolves(user: &JailUser, resolve: Resolve<'_>) -> Option<(u32, u32)> {
    match user {
        JailUser::Name(_) if cfg!(target_os = "freebsd") => None,
        user => resolve(user),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;
    use crate::sys::Caller;
    use proptest::prelude::*;

    const POLICY: &str = r#"
        [[rule]]
        callers = ["7"]
        jails = ["web", "agent-*"]
        users = ["agent", "1001:1002"]
        programs = ["/usr/bin/pi"]
        signals = ["TERM", "KILL"]
        [[rule]]
        callers = ["7"]
        jails = ["colibri-*"]
        roots = ["/srv/base", "/srv/agents/*"]
        users = ["1001"]
        programs = ["*"]
        ip4 = ["disable", "192.0.2.7", "192.0.2.8"]
        signals = ["KILL"]
    "#;

    fn resolve(user: &JailUser) -> Option<(u32, u32)> {
        match user {
            JailUser::Name(name) => match name.as_ref() {
                "agent" => Some((1001, 1002)),
                "root" => Some((0, 0)),
                _ => None,
            },
            JailUser::Id { uid, gid } => Some((*uid, gid.unwrap_or(*uid))),
        }
    }

    fn answer(policy: &str, line: &str) -> String {
        let policy = Policy::parse(policy).unwrap();
        let rules = policy.of(&Caller {
            uid: 7,
            groups: Vec::new(),
        });
        let words: Vec<Vec<u8>> = std::iter::once("helper")
            .chain(line.split(' '))
            .map(|word| word.as_bytes().to_vec())
            .collect();
        match decide(&rules, &Request::parse(&words).unwrap(), &resolve) {
            Ok(grant) => {
                let user = grant.user.map_or("-".to_owned(), |user| user.to_string());
                format!("yes, {user} {}", grant.programs.join(" "))
            }
            Err(refusal) => refusal.to_string(),
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn every_part_of_a_request_must_be_in_one_rule() {
        let mut shown = String::new();
        for line in [
            "attach --jail web -- pi",
            "attach --jail web -- /usr/bin/pi -x",
            "attach --jail web --user agent -- pi",
            "attach --jail web --user 1001:1002 -- pi",
            "attach --jail agent-7 -- pi",
            "attach --jail web --user 1001 -- pi",
            "attach --jail web --user root -- pi",
            "attach --jail web --user 0 -- pi",
            "attach --jail web -- /bin/sh",
            "attach --jail web -- sh",
            "attach --jail db -- pi",
            "create --jail colibri-1 --path /srv/base --ip4 disable -- sh",
            "create --jail colibri-1 --path /srv/agents/a/b --ip4 disable --user 1001 -- /x/y",
            "create --jail colibri-1 --path /srv/agents --ip4 disable -- sh",
            "create --jail colibri-1 --path / --ip4 disable -- sh",
            "create --jail colibri-1 --path /srv/base/x --ip4 disable -- sh",
            "create --jail colibri-1 --path /srv/base --ip4 inherit -- sh",
            "create --jail colibri-1 --path /srv/base --ip4 192.0.2.7,192.0.2.8 -- sh",
            "create --jail colibri-1 --path /srv/base --ip4 disable --user agent -- sh",
            "signal --signal TERM --pid 7",
            "signal --jail web --signal TERM --pid 7",
            "signal --jail colibri-1 --signal TERM --pid 7",
            "signal --signal HUP --pid 7",
            "remove --jail colibri-1",
            "check",
        ] {
            shown.push_str(&format!("{line}\n    {}\n", answer(POLICY, line)));
        }
        insta::assert_snapshot!(shown);
    }

    #[test]
    fn an_empty_rule_allows_nothing_that_runs() {
        let policy = "[[rule]]\ncallers = [\"7\"]";
        for line in [
            "attach --jail web -- pi",
            "create --jail colibri-1 --path / --ip4 disable -- sh",
            "signal --signal TERM --pid 7",
        ] {
            assert!(!answer(policy, line).starts_with("yes"), "{line}");
        }
    }

    #[test]
    fn root_is_never_a_user_on_linux_whatever_the_policy_says() {
        let policy = "[[rule]]\ncallers = [\"7\"]\njails = [\"*\"]\nprograms = [\"*\"]\nusers = [\"0\", \"root\", \"1:0\", \"5\"]";
        for (user, allowed) in [("0", false), ("root", false), ("1:0", false), ("5", true)] {
            let line = format!("attach --jail web --user {user} -- pi");
            let yes = answer(policy, &line).starts_with("yes");
            assert_eq!(yes, allowed || cfg!(target_os = "freebsd"), "{user}");
        }
        let line = "attach --jail web -- pi";
        assert_eq!(
            answer(policy, line).starts_with("yes"),
            cfg!(target_os = "freebsd")
        );
    }

    proptest! {
        /// A second rule never takes away, and what two allow together one of them allows alone.
        #[test]
        fn rules_add_up_and_do_not_mix(
            jail in "(web|db|agent-[a-z]{0,3})", user in "(agent|1001|1001:1002|0|5)", program in "(pi|/bin/sh|/usr/bin/pi)"
        ) {
            let line = format!("attach --jail {jail} --user {user} -- {program}");
            let halves: Vec<_> = POLICY.split("[[rule]]").skip(1).map(|half| format!("[[rule]]{half}")).collect();
            let alone = halves.iter().any(|half| answer(half, &line).starts_with("yes"));
            prop_assert_eq!(answer(POLICY, &line).starts_with("yes"), alone);
        }
    }
}
