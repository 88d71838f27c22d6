//! Checks of the built-in backends on a host: a trial of mdo(1); owner, mode and policy of the helper.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::geteuid;

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

/// Checks whether mdo(1) is installed and lets this user become root: `trial` is a harmless command line of it, on
/// which the kernel decides by the rules of mac_do(4).
pub(crate) async fn mdo(program: &'static str, trial: &[&str]) -> Vec<Finding> {
    let installed = blocking(move || {
        executable(
            program,
            "mdo comes with FreeBSD 14.2 and later; elsewhere set COLIBRI_JAIL_PRIV_MODE",
        )
    })
    .await;
    if installed.status != FindingStatus::Ok {
        return vec![installed];
    }
    let uid = geteuid().as_raw();
    let allowed = match probe::run(program.as_ref(), trial, PROBE_TIMEOUT).await {
        Ok(output) if output.is_success() => Finding::ok(format!("mdo lets uid {uid} become root")),
        Ok(output) => Finding::fail(
            format!(
                "mdo does not let uid {uid} become root: {}",
                output.failure()
            ),
            mac_do_fix(uid).await,
        ),
        Err(error) => Finding::fail(
            format!("{program} cannot be run: {error}"),
            "use the privilege backend mdo on FreeBSD only",
        ),
    };
    vec![installed, allowed]
}

/// Returns how to make mac_do(4) let this user become root. The module defines the variable.
async fn mac_do_fix(uid: u32) -> String {
    let variable = ["-n", "security.mac.do.enabled"];
    match probe::run("/sbin/sysctl".as_ref(), &variable, PROBE_TIMEOUT).await {
        Ok(output) if !output.is_success() => {
            "as root load mac_do(4): kldload mac_do, and mac_do_load=\"YES\" in /boot/loader.conf; then add a rule to security.mac.do.rules".to_owned()
        }
        Ok(output) if output.stdout.trim() == "0" => {
            "as root enable mac_do(4): sysctl security.mac.do.enabled=1".to_owned()
        }
        _ => format!(
            "as root add a rule: sysctl security.mac.do.rules='RULES;uid={uid}>uid=0' (before FreeBSD 15 uid={uid}:0), with the present RULES first, and the same in /etc/sysctl.conf; a rule that lists groups must keep the present ones: add gid=.,+gid=. to its targets"
        ),
    }
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
    match probe::run(program.as_ref(), &["check"], PROBE_TIMEOUT).await {
        Ok(output) if output.is_success() => {
            findings.push(Finding::ok(
                "the helper's policy has rules for this user; see: colibri-jail-helper check",
            ));
        }
        Ok(output) => {
            let cause = output.failure();
            let failed = format!("the helper's check failed: {cause}");
            match output.status.map(|status| status.code()) {
                None => findings.push(Finding::fail(
                    failed,
                    "find out what it waits for, e.g. with ps(1), and fix that",
                )),
                Some(Some(EX_NOPERM)) => findings.push(Finding::fail(
                    format!("the helper refuses this user: {cause}"),
                    format!("as root add a rule with this user among its callers to {POLICY}"),
                )),
                Some(_) => {
                    let policy = blocking(|| writable_by_root_only(Path::new(POLICY))).await;
                    let fix = match policy.status {
                        FindingStatus::Ok => "fix as root what the system log names".to_owned(),
                        _ => format!(
                            "fix {POLICY} as the other findings say; the system log has the reason too"
                        ),
                    };
                    findings.extend([Finding::fail(failed, fix), policy]);
                }
            }
        }
        Err(error) => findings.push(Finding::fail(
            format!("{program} cannot be run: {error}"),
            "install colibri-jail-helper for this system",
        )),
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn refused_mdo_trial_reports_cause_and_rule() {
        let allowed = mdo("/bin/sh", &["-c", ":"]).await;
        assert!(
            allowed.iter().all(|f| f.status == FindingStatus::Ok),
            "{allowed:?}"
        );
        let refused = mdo("/bin/sh", &["-c", "echo setcred >&2; exit 1"]).await;
        let [_, verdict] = &refused[..] else {
            panic!("{refused:?}");
        };
        assert_eq!(verdict.status, FindingStatus::Fail);
        assert!(verdict.what.ends_with("become root: setcred"));
        assert!(verdict.fix.as_ref().unwrap().contains("security.mac.do"));
        assert_eq!(mdo("/absent/mdo", &[]).await.len(), 1);
    }
}
