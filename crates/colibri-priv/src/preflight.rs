//! What the built-in backends look at on a host: mac_do's rules, the helper's owner, mode and policy.

use std::path::Path;
use std::time::Duration;

use crate::checks::{roots_alone, setuid_root};
use crate::{Finding, FindingStatus, probe};

const LIMIT: Duration = Duration::from_secs(5);
/// EX_NOPERM of sysexits(3): the helper's policy does not list the caller.
const NOT_LISTED: i32 = 77;

/// Where the helper's policy is, unless it was built with another place.
const POLICY: &str = if cfg!(target_os = "freebsd") {
    "/usr/local/etc/colibri/helper.toml"
} else {
    "/etc/colibri/helper.toml"
};

/// Whether mac_do(4) is there and has a rule that makes this user root. Looked at on FreeBSD only.
#[cfg(target_os = "freebsd")]
pub(crate) fn mac_do() -> Vec<Finding> {
    use crate::macdo::{self, Verdict};
    use rustix::process::{getegid, geteuid, getgroups};

    const SYSCTL: &str = "/sbin/sysctl";
    let uid = geteuid().as_raw();
    if uid == 0 {
        return vec![Finding::ok("runs as root, so mdo asks for nothing")];
    }
    let add = format!(
        "as root add a rule: sysctl security.mac.do.rules='RULES;uid={uid}>uid=0' (before FreeBSD 15 uid={uid}:0), with the present RULES in front, and the same in /etc/sysctl.conf"
    );
    let ask = |name: &str| probe::run(SYSCTL.as_ref(), &["-n".to_owned(), name.to_owned()], LIMIT);
    let rules = match ask("security.mac.do.rules") {
        Err(error) => {
            return vec![Finding::fail(
                format!("{SYSCTL} cannot be run: {error}"),
                "use the privilege backend mdo on FreeBSD only",
            )];
        }
        // The variable is the module's own.
        Ok(said) if !said.worked() => {
            let what = format!("mac_do(4) is not loaded: {}", said.complaint());
            let fix = "as root: kldload mac_do, and mac_do_load=\"YES\" in /boot/loader.conf";
            return vec![Finding::fail(what, fix)];
        }
        Ok(said) => said.out,
    };
    let mut findings = Vec::new();
    if ask("security.mac.do.enabled").is_ok_and(|said| said.out.trim() == "0") {
        let fix = "as root: sysctl security.mac.do.enabled=1";
        findings.push(Finding::fail("mac_do(4) is switched off", fix));
    }
    let gid = getegid().as_raw();
    let groups: Vec<u32> = getgroups()
        .unwrap_or_default()
        .iter()
        .map(|group| group.as_raw())
        .collect();
    findings.push(match macdo::parse(rules.trim()) {
        Err(error) => Finding::warn(format!("security.mac.do.rules: {error}"), "correct it as mac_do(4) describes, and try: mdo -i id"),
        Ok(rules) => match macdo::verdict(&rules, uid, gid, &groups) {
            Verdict::Allowed(rule) => Finding::ok(format!("mac_do lets uid {uid} become root: {rule}")),
            Verdict::Groups(rule) => Finding::fail(
                format!("the rule {rule} does not let uid {uid} become root with the groups that it has"),
                "let them stay: add gid=.,+gid=. to the targets of that rule in security.mac.do.rules",
            ),
            Verdict::NoRule => Finding::fail(format!("no rule of mac_do lets uid {uid} become root"), add),
        },
    });
    findings
}

#[cfg(not(target_os = "freebsd"))]
pub(crate) fn mac_do() -> Vec<Finding> {
    Vec::new()
}

/// Whether the helper is what it must be, and lets this user do something. It is asked itself, because the place of
/// its policy was fixed when it was built; of the usual place is said what anybody can see of it.
pub(crate) fn helper(program: &Path) -> Vec<Finding> {
    let setuid = setuid_root(program);
    if setuid.status != FindingStatus::Ok {
        return vec![setuid];
    }
    let mut findings = vec![setuid];
    let policy = roots_alone(Path::new(POLICY));
    match probe::run(program, &["check".to_owned()], LIMIT) {
        Ok(said) if said.worked() => {
            findings.push(Finding::ok(
                "the helper's policy has rules for this user; see: colibri-jail-helper check",
            ));
        }
        Ok(said) => {
            let listed = said.status.and_then(|status| status.code()) != Some(NOT_LISTED);
            let fix = if listed && policy.status == FindingStatus::Ok {
                "fix as root what the system log names".to_owned()
            } else if listed {
                format!("fix {POLICY} as the other findings say; the system log has the reason too")
            } else {
                format!("as root add a rule with this user among its callers to {POLICY}")
            };
            findings.push(Finding::fail(
                format!("the helper refuses this user: {}", said.complaint()),
                fix,
            ));
            if listed {
                findings.push(policy);
            }
        }
        Err(error) => findings.push(Finding::fail(
            format!("{} cannot be run: {error}", program.display()),
            "install colibri-jail-helper for this system",
        )),
    }
    findings
}
