//! Checks which limits of an agent can be enforced on this host, and how to enable the others.

use std::path::Path;

use colibri_jail_core::LimitMechanism;
use colibri_priv::{Finding, probe};

use super::PROGRAM_TIMEOUT;
use crate::{Cgroups, Obstacle};

/// Limits on all processes of an agent together, and their cgroup controllers.
const LIMITS: &[(&str, &str)] = &[("memory", "memory"), ("processes", "pids"), ("cpu", "cpu")];
/// Name of the sysctl that enables rctl(8).
const RACCT: &str = "kern.racct.enable";

/// Returns one finding for each limit. A limit that cannot be enforced is a warning: agents run without it.
pub(super) async fn enforceable(mechanism: LimitMechanism, cgroups: &Cgroups) -> Vec<Finding> {
    if mechanism == LimitMechanism::Rctl {
        return vec![by_rctl(racct().await)];
    }
    let finding = |(limit, controller): &(&str, &str)| match mechanism {
        LimitMechanism::Unavailable(why) => by_cgroup(limit, Some(why.into())),
        _ => by_cgroup(limit, cgroups.obstacle(controller)),
    };
    LIMITS.iter().map(finding).collect()
}

/// Returns the finding for one limit.
fn by_cgroup(limit: &str, obstacle: Option<Obstacle>) -> Finding {
    match obstacle {
        None => Finding::ok(format!("limit {limit} can be enforced, by a cgroup")),
        Some(Obstacle { cause, hint }) => {
            Finding::warn(format!("limit {limit} cannot be enforced: {cause}"), hint)
        }
    }
}

fn by_rctl(racct: Result<(), String>) -> Finding {
    match racct {
        Ok(()) => {
            Finding::ok("limits memory, processes and cpu can be enforced on jails, by rctl(8)")
        }
        Err(why) => Finding::warn(
            format!("limits memory, processes and cpu cannot be enforced: {why}"),
            format!("set {RACCT}=1 in /boot/loader.conf and reboot (rctl(8))"),
        ),
    }
}

async fn racct() -> Result<(), String> {
    match probe::run(Path::new("/sbin/sysctl"), &["-n", RACCT], PROGRAM_TIMEOUT).await {
        Ok(output) if output.is_success() && output.stdout.trim() == "1" => Ok(()),
        Ok(output) if output.is_success() => Err(format!("{RACCT} is {}", output.stdout.trim())),
        Ok(output) => Err(format!("sysctl {RACCT} failed: {}", output.failure())),
        Err(error) => Err(format!("/sbin/sysctl cannot be started: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use colibri_priv::FindingStatus;

    #[tokio::test]
    async fn each_limit_has_a_finding_with_a_fix() {
        let some = Cgroups::In {
            parent: "/c".into(),
            controllers: vec!["pids".to_owned()],
        };
        let mut findings = enforceable(LimitMechanism::Cgroup, &some).await;
        let none = Cgroups::Unavailable(Obstacle {
            cause: "no cgroups".to_owned(),
            hint: "mount them".to_owned(),
        });
        findings.extend(enforceable(LimitMechanism::Cgroup, &none).await);
        findings.extend([by_rctl(Ok(())), by_rctl(Err(format!("{RACCT} is 0")))]);
        let shown: Vec<String> = findings
            .iter()
            .map(|finding| {
                let fix = finding.fix.as_deref().unwrap_or("-");
                assert_eq!(finding.fix.is_none(), finding.status == FindingStatus::Ok);
                format!("{:?}: {} -> {fix}", finding.status, finding.what)
            })
            .collect();
        insta::assert_snapshot!(shown.join("\n"));
    }
}
