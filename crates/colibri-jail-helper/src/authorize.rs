//! Authorization: pure functions from the caller's rules and a request to a grant or a refusal.

use colibri_jail_core::{EphemeralJail, Ip4Policy, JailName, JailUser, Signal};

use crate::escape::printable;
use crate::policy::Rule;
use crate::request::ProgramRun;
use crate::users::{self, UserIds};

/// Facts about the host.
#[derive(Clone, Copy)]
pub(crate) struct Host {
    /// Whether the host is Linux, and not FreeBSD.
    pub(crate) is_linux: bool,
    /// Returns the ids of a user of the host.
    pub(crate) find_user: fn(&JailUser) -> Option<UserIds>,
}

impl Host {
    /// Returns this host.
    pub(crate) fn this() -> Self {
        Self {
            is_linux: cfg!(target_os = "linux"),
            find_user: users::host_ids,
        }
    }

    /// Returns the ids of a user inside a jail. A name in a FreeBSD jail is resolved by the jail's own table, so it has
    /// no ids here.
    fn ids(&self, user: &JailUser) -> Option<UserIds> {
        match self.is_linux {
            true => (self.find_user)(user),
            false => UserIds::numeric(user),
        }
    }
}

/// An authorized program: the request with what one rule adds to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grant<'a> {
    pub(crate) rule: &'a Rule,
    pub(crate) jail: &'a JailName,
    pub(crate) run: &'a ProgramRun,
    /// The user inside.
    pub(crate) user: JailUser,
    /// Its ids, never root's. Absent for a name in a FreeBSD jail, which that jail's own table resolves.
    pub(crate) ids: Option<UserIds>,
    /// Allowed paths of the program; the first that exists is executed.
    pub(crate) programs: Vec<String>,
}

/// Why no rule allows a request. Later variants are closer to a grant; the closest one of all rules is reported.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("no rule for this caller allows jail {0}; add jails = [\"{0}\"]")]
    Jail(String),
    #[error("no rule with this jail allows root {0}; add roots = [\"{0}\"]")]
    Root(String),
    #[error(
        "no rule with this jail allows ip4 {0}; give an allowed value (--jail-ip4 of colibri), or add ip4 = [{1}]"
    )]
    Ip4(String, String),
    #[error("no rule with this jail allows user {0}; add users = [\"{0}\"]")]
    User(String),
    #[error("no rule with this jail has a default user; give --user, or add users = [\"NAME\"]")]
    NoUser,
    #[error("user {0} does not exist; give a known user, or UID:GID")]
    UnknownUser(String),
    #[error("uid 0 and gid 0 are never allowed; give another user")]
    RootUser,
    #[error("no rule with this jail allows program {0}; add programs = [\"{1}\"]")]
    Program(String, String),
    #[error("no rule with this jail allows signal {0}; add signals = [\"{0}\"]")]
    Signal(String),
    #[error("ip4 {0} is not available on Linux; give inherit or disable")]
    Ip4OnLinux(String),
    #[error("cannot enter jail {0}: Linux has no persistent jails; use create")]
    AttachOnLinux(String),
    #[error("monitor, clean and await-proxy are for root; use create, attach or remove")]
    RootOnly,
    #[error("process {0} does not belong to an agent of this caller{1}; give a process of one")]
    NotOwnProcess(u32, String),
    #[error("jail {0} was not created for this caller; give the jail of an own agent")]
    NotOwnJail(String),
}

/// Returns the result of the first rule that allows the request, or the closest refusal. `rules` is not empty.
fn first_allowed<'a, T>(
    rules: &[&'a Rule],
    check: impl Fn(&'a Rule) -> Result<T, Refusal>,
) -> Result<T, Refusal> {
    let mut closest = None;
    for rule in rules {
        match check(rule) {
            Ok(granted) => return Ok(granted),
            Err(refusal) => closest = closest.max(Some(refusal)),
        }
    }
    Err(closest.unwrap_or(Refusal::NoUser))
}

/// Authorizes running a program in a new jail.
pub(crate) fn create<'a>(
    rules: &[&'a Rule],
    jail: &'a EphemeralJail,
    run: &'a ProgramRun,
    host: &Host,
) -> Result<Grant<'a>, Refusal> {
    first_allowed(rules, |rule| {
        check_jail(rule, &jail.name)?;
        if !rule.allows_root(&jail.path) {
            return Err(Refusal::Root(printable(jail.path.as_str())));
        }
        check_ip4(rule, &jail.ip4, host)?;
        check_run(rule, &jail.name, run, host)
    })
}

/// Authorizes running a program in an existing jail.
pub(crate) fn attach<'a>(
    rules: &[&'a Rule],
    jail: &'a JailName,
    run: &'a ProgramRun,
    host: &Host,
) -> Result<Grant<'a>, Refusal> {
    if host.is_linux {
        return Err(Refusal::AttachOnLinux(jail.to_string()));
    }
    first_allowed(rules, |rule| {
        check_jail(rule, jail)?;
        check_run(rule, jail, run, host)
    })
}

/// Authorizes a signal, in `jail` if it is known. Whether a process belongs to the caller is checked by its record.
pub(crate) fn signal(
    rules: &[&Rule],
    jail: Option<&JailName>,
    signal: Signal,
) -> Result<(), Refusal> {
    first_allowed(rules, |rule| {
        if let Some(jail) = jail {
            check_jail(rule, jail)?;
        }
        match rule.allows_signal(signal) {
            true => Ok(()),
            false => Err(Refusal::Signal(signal.to_string())),
        }
    })
}

fn check_jail(rule: &Rule, jail: &JailName) -> Result<(), Refusal> {
    match rule.allows_jail(jail) {
        true => Ok(()),
        false => Err(Refusal::Jail(jail.to_string())),
    }
}

fn check_ip4(rule: &Rule, ip4: &Ip4Policy, host: &Host) -> Result<(), Refusal> {
    if host.is_linux && !matches!(ip4, Ip4Policy::Inherit | Ip4Policy::Disable) {
        return Err(Refusal::Ip4OnLinux(ip4.to_string()));
    }
    if rule.allows_ip4(ip4) {
        return Ok(());
    }
    let ip4 = ip4.to_string();
    let values: Vec<_> = ip4.split(',').map(|value| format!("{value:?}")).collect();
    Err(Refusal::Ip4(ip4.clone(), values.join(", ")))
}

fn check_run<'a>(
    rule: &'a Rule,
    jail: &'a JailName,
    run: &'a ProgramRun,
    host: &Host,
) -> Result<Grant<'a>, Refusal> {
    let user = match (&run.user, rule.users.first()) {
        (Some(user), _) => user,
        (None, Some(first)) => &first.value,
        (None, None) => return Err(Refusal::NoUser),
    };
    // The only lookup: the agent gets these ids.
    let ids = host.ids(user);
    // On Linux the agent would be root of the host. root of a FreeBSD jail is less, but not for a caller that cooperates
    // with it: the caller can pass it a directory of the host (unix(4), SCM_RIGHTS).
    if user.to_string() == "root" || ids.is_some_and(UserIds::is_root) {
        return Err(Refusal::RootUser);
    }
    let is_same =
        |allowed: &JailUser| allowed == user || (ids.is_some() && host.ids(allowed) == ids);
    if !rule.users.iter().any(|allowed| is_same(&allowed.value)) {
        return Err(Refusal::User(user.to_string()));
    }
    if host.is_linux && ids.is_none() {
        return Err(Refusal::UnknownUser(user.to_string()));
    }
    let candidates = run.candidates();
    let allowed = candidates.iter().filter(|path| rule.allows_program(path));
    let programs: Vec<_> = allowed.cloned().collect();
    if programs.is_empty() {
        let program = printable(run.command.program());
        let path = match &candidates[..] {
            [path] => printable(path),
            _ => format!("/usr/bin/{program}"),
        };
        return Err(Refusal::Program(program, path));
    }
    Ok(Grant {
        rule,
        jail,
        run,
        user: user.clone(),
        ids,
        programs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;
    use crate::request::HelperRequest;
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

    const LINUX: Host = host(true);
    const FREEBSD: Host = host(false);

    const fn host(is_linux: bool) -> Host {
        Host {
            is_linux,
            find_user,
        }
    }

    fn find_user(user: &JailUser) -> Option<UserIds> {
        let (uid, gid) = match user {
            JailUser::Id { .. } => return UserIds::numeric(user),
            JailUser::Name(name) => match name.as_ref() {
                "agent" => (1001, 1002),
                "root" => (0, 0),
                _ => return None,
            },
        };
        Some(UserIds { uid, gid })
    }

    fn answer(policy: &str, line: &str, host: &Host) -> String {
        let policy = Policy::parse(policy).unwrap();
        let rules = policy.rules_for(&Caller {
            uid: 7,
            groups: Vec::new(),
        });
        let argv: Vec<Vec<u8>> = std::iter::once("helper")
            .chain(line.split(' '))
            .map(|argument| argument.as_bytes().to_vec())
            .collect();
        let request = HelperRequest::parse(&argv).unwrap();
        let grant = match &request {
            HelperRequest::Create { jail, run, .. } => create(&rules, jail, run, host),
            HelperRequest::Attach { jail, run } => attach(&rules, jail, run, host),
            HelperRequest::Signal {
                jail, signal: sent, ..
            } => {
                return match signal(&rules, jail.as_ref(), *sent) {
                    Ok(()) => "yes".to_owned(),
                    Err(refusal) => refusal.to_string(),
                };
            }
            HelperRequest::Remove { .. }
            | HelperRequest::Monitor { .. }
            | HelperRequest::Clean { .. }
            | HelperRequest::AwaitProxy { .. }
            | HelperRequest::Check => {
                unreachable!("decided without a rule")
            }
        };
        match grant {
            Ok(grant) => format!("yes, {} {}", grant.user, grant.programs.join(" ")),
            Err(refusal) => refusal.to_string(),
        }
    }

    fn is_allowed(policy: &str, line: &str, host: &Host) -> bool {
        answer(policy, line, host).starts_with("yes")
    }

    #[test]
    fn one_rule_must_allow_every_part_of_a_request() {
        let mut table = String::new();
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
        ] {
            table.push_str(&format!(
                "{line}\n    linux:   {}\n    freebsd: {}\n",
                answer(POLICY, line, &LINUX),
                answer(POLICY, line, &FREEBSD)
            ));
        }
        insta::assert_snapshot!(table);
    }

    #[test]
    fn empty_rule_allows_nothing() {
        let policy = "[[rule]]\ncallers = [\"7\"]";
        for line in [
            "attach --jail web -- pi",
            "create --jail colibri-1 --path / --ip4 disable -- sh",
            "signal --signal TERM --pid 7",
        ] {
            for host in [LINUX, FREEBSD] {
                assert!(!is_allowed(policy, line, &host), "{line}");
            }
        }
    }

    #[test]
    fn root_user_is_refused_even_if_allowed() {
        let policy = "[[rule]]\ncallers = [\"7\"]\njails = [\"*\"]\nroots = [\"/\"]\nip4 = [\"disable\"]\nprograms = [\"*\"]\nusers = [\"0\", \"root\", \"1:0\", \"5\"]";
        let create = "create --jail colibri-1 --path / --ip4 disable";
        for (user, allowed) in [("0", false), ("root", false), ("1:0", false), ("5", true)] {
            let line = format!("{create} --user {user} -- pi");
            for host in [LINUX, FREEBSD] {
                assert_eq!(is_allowed(policy, &line, &host), allowed, "{user}");
            }
        }
        let default_user = format!("{create} -- pi");
        assert!(!is_allowed(policy, &default_user, &LINUX));
        assert!(!is_allowed(policy, &default_user, &FREEBSD));
    }

    proptest! {
        /// Two rules together allow what one of them allows alone, and nothing else.
        #[test]
        fn rules_add_up_and_do_not_mix(
            verb in "(attach --jail (web|db|agent-[a-z]{0,3})|create --jail colibri-1 --path (/srv/base|/srv) --ip4 (disable|inherit))",
            user in "(agent|1001|1001:1002|0|5)", program in "(pi|/bin/sh|/usr/bin/pi)", on_linux in any::<bool>()
        ) {
            let host = if on_linux { LINUX } else { FREEBSD };
            let line = format!("{verb} --user {user} -- {program}");
            let rules: Vec<_> = POLICY.split("[[rule]]").skip(1).map(|rule| format!("[[rule]]{rule}")).collect();
            let alone = rules.iter().any(|rule| is_allowed(rule, &line, &host));
            prop_assert_eq!(is_allowed(POLICY, &line, &host), alone);
        }
    }
}
