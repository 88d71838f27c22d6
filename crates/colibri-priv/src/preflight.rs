//! Checks of the built-in backends on a host: the rules of mac_do(4); owner, mode and policy of the helper.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::checks::{executable, setuid_root, writable_by_root_only};
use crate::{Finding, FindingStatus, probe};

/// Timeout of one program.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// EX_NOPERM of sysexits(3): the helper's policy does not list the caller.
const EX_NOPERM: i32 = 77;

/// Default path of the helper's policy; the helper's build may set another.
const POLICY: &str = if cfg!(target_os = "freebsd") {
    "/usr/local/etc/colibri/helper.toml"
} else {
    "/etc/colibri/helper.toml"
};

/// Runs a check of files on the pool for blocking work.
async fn blocking(check: impl FnOnce() -> Finding + Send + 'static) -> Finding {
    match tokio::task::spawn_blocking(check).await {
        Ok(finding) => finding,
        Err(error) => Finding::fail(
            format!("a check of files failed: {error}"),
            "run the check again",
        ),
    }
}

/// Checks whether mdo(1) is installed and, on FreeBSD, whether a rule of mac_do(4) lets this user become root.
pub(crate) async fn mdo(program: &'static str) -> Vec<Finding> {
    let installed = move || {
        executable(
            program,
            "mdo comes with FreeBSD 14.2 and later; elsewhere set COLIBRI_JAIL_PRIV_MODE",
        )
    };
    let mut findings = vec![blocking(installed).await];
    findings.extend(mac_do().await);
    findings
}

#[cfg(target_os = "freebsd")]
async fn mac_do() -> Vec<Finding> {
    use crate::macdo::{self, Verdict};
    use rustix::process::{getegid, geteuid, getgroups};

    const SYSCTL: &str = "/sbin/sysctl";
    async fn sysctl(name: &str) -> std::io::Result<probe::ProbeOutput> {
        let args = ["-n".to_owned(), name.to_owned()];
        probe::run(SYSCTL.as_ref(), &args, PROBE_TIMEOUT).await
    }

    let uid = geteuid().as_raw();
    if uid == 0 {
        return vec![Finding::ok("runs as root, so mdo needs no rule")];
    }
    let add_rule = format!(
        "as root add a rule: sysctl security.mac.do.rules='RULES;uid={uid}>uid=0' (before FreeBSD 15 uid={uid}:0), with the present RULES first, and the same in /etc/sysctl.conf"
    );
    let rules = match sysctl("security.mac.do.rules").await {
        Err(error) => {
            return vec![Finding::fail(
                format!("{SYSCTL} cannot be run: {error}"),
                "use the privilege backend mdo on FreeBSD only",
            )];
        }
        // The module defines the variable.
        Ok(output) if !output.is_success() => {
            let what = format!("mac_do(4) is not loaded: {}", output.failure());
            let fix = "as root: kldload mac_do, and mac_do_load=\"YES\" in /boot/loader.conf";
            return vec![Finding::fail(what, fix)];
        }
        Ok(output) => output.stdout,
    };
    let mut findings = Vec::new();
    let enabled = sysctl("security.mac.do.enabled").await;
    if enabled.is_ok_and(|output| output.stdout.trim() == "0") {
        let fix = "as root: sysctl security.mac.do.enabled=1";
        findings.push(Finding::fail("mac_do(4) is disabled", fix));
    }
    let gid = getegid().as_raw();
    let groups: Vec<u32> = getgroups()
        .unwrap_or_default()
        .iter()
        .map(|group| group.as_raw())
        .collect();
    findings.push(match macdo::parse(rules.trim()) {
        Err(error) => Finding::warn(
            format!("security.mac.do.rules: {error}"),
            "correct it as mac_do(4) describes, and test it: mdo -i id",
        ),
        Ok(rules) => match macdo::verdict(&rules, uid, gid, &groups) {
            Verdict::Allowed(rule) => Finding::ok(format!("mac_do lets uid {uid} become root: {rule}")),
            Verdict::WrongGroups(rule) => Finding::fail(
                format!("the rule {rule} does not let uid {uid} become root with its present groups"),
                "keep the groups: add gid=.,+gid=. to the targets of that rule in security.mac.do.rules",
            ),
            Verdict::NoRule => {
                Finding::fail(format!("no rule of mac_do lets uid {uid} become root"), add_rule)
            }
        },
    });
    findings
}

#[cfg(not(target_os = "freebsd"))]
async fn mac_do() -> Vec<Finding> {
    Vec::new()
}

/// Checks whether the helper is setuid root and whether its policy has rules for this user. The helper itself reports on
/// the policy, because its build fixes the policy's path; the file at the default path is checked as far as this user
/// can read it.
pub(crate) async fn helper(program: &str) -> Vec<Finding> {
    let path = PathBuf::from(program);
    let setuid = blocking(move || setuid_root(&path)).await;
    if setuid.status != FindingStatus::Ok {
        return vec![setuid];
    }
    let mut findings = vec![setuid];
    let policy = blocking(|| writable_by_root_only(Path::new(POLICY))).await;
    match probe::run(program.as_ref(), &["check".to_owned()], PROBE_TIMEOUT).await {
        Ok(output) if output.is_success() => {
            findings.push(Finding::ok(
                "the helper's policy has rules for this user; see: colibri-jail-helper check",
            ));
        }
        Ok(output) => {
            let is_listed = output.status.and_then(|status| status.code()) != Some(EX_NOPERM);
            let fix = if is_listed && policy.status == FindingStatus::Ok {
                "fix as root what the system log names".to_owned()
            } else if is_listed {
                format!("fix {POLICY} as the other findings say; the system log has the reason too")
            } else {
                format!("as root add a rule with this user among its callers to {POLICY}")
            };
            findings.push(Finding::fail(
                format!("the helper refuses this user: {}", output.failure()),
                fix,
            ));
            if is_listed {
                findings.push(policy);
            }
        }
        Err(error) => findings.push(Finding::fail(
            format!("{program} cannot be run: {error}"),
            "install colibri-jail-helper for this system",
        )),
    }
    findings
}
