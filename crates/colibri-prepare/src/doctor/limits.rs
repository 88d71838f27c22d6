//! Checks which limits of an agent can be enforced on this host, and how to enable the others.

use colibri_jail_core::{KernelSupport, LimitMechanism};
use colibri_priv::Finding;

use super::on_a_thread;
use crate::kernel_support::support_obstacle;
use crate::{Cgroups, Obstacle};

/// Limits on all processes of an agent together, and their cgroup controllers.
const LIMITS: &[(&str, &str)] = &[("memory", "memory"), ("processes", "pids"), ("cpu", "cpu")];

/// Returns a finding for each limit, or one for all. A limit that cannot be enforced is a warning: agents run without it.
pub(super) async fn enforceable(mechanism: LimitMechanism, cgroups: &Cgroups) -> Vec<Finding> {
    match mechanism {
        LimitMechanism::PreRun(support) => {
            let checked = on_a_thread("colibri-doctor", move || support_obstacle(&support));
            match checked.await {
                Ok(obstacle) => vec![pre_run_finding(&support, obstacle)],
                Err(finding) => vec![finding],
            }
        }
        LimitMechanism::Cgroup => LIMITS
            .iter()
            .map(|(limit, controller)| by_cgroup(limit, cgroups.obstacle(controller)))
            .collect(),
        LimitMechanism::Unavailable { cause, hint } => vec![unenforceable(cause, hint)],
    }
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

/// Returns the finding for all limits that the engine's own operations set.
fn pre_run_finding(support: &KernelSupport, obstacle: Option<Obstacle>) -> Finding {
    match obstacle {
        None => Finding::ok(format!(
            "limits memory, processes and cpu can be enforced, by {}",
            support.name
        )),
        Some(Obstacle { cause, hint }) => unenforceable(&cause, &hint),
    }
}

fn unenforceable(cause: &str, hint: &str) -> Finding {
    Finding::warn(
        format!("limits memory, processes and cpu cannot be enforced: {cause}"),
        hint,
    )
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
        let unavailable = LimitMechanism::Unavailable {
            cause: "no mechanism",
            hint: "remove them",
        };
        findings.extend(enforceable(unavailable, &none).await);
        for script in ["echo 1", "echo 0", "echo no >&2; exit 3"] {
            let support = KernelSupport {
                name: "rctl(8)",
                program: "/bin/sh",
                args: Box::leak(Box::new(["-c", script])),
                expected: "1",
                hint: "enable them",
            };
            findings.extend(enforceable(LimitMechanism::PreRun(support), &none).await);
        }
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
