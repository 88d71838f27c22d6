//! Removes ended agents by age and count: at the daemon's start, every hour, and after an agent has ended.

use std::sync::Arc;
use std::time::Duration;

use colibri_config::Retention;

use super::{EndedAgent, Registry};
use crate::times;

/// Interval between passes while no agent ends.
const PASS_INTERVAL: Duration = Duration::from_secs(3600);
/// Minimum interval between passes, for any rate of ending agents.
const MIN_PASS_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum number of agents that one pass removes.
const MAX_REMOVALS_PER_PASS: usize = 100;

/// Runs passes forever.
pub(crate) async fn run(registry: Arc<Registry>) {
    let mut changes = registry.retention.subscribe();
    loop {
        let is_done = pass(&registry).await;
        tokio::time::sleep(MIN_PASS_INTERVAL).await;
        if is_done {
            let _ = tokio::time::timeout(PASS_INTERVAL, changes.changed()).await;
        }
    }
}

/// Removes at most [`MAX_REMOVALS_PER_PASS`] expired agents, the oldest first; returns whether none is left.
async fn pass(registry: &Registry) -> bool {
    let retention = *registry.retention.borrow();
    if retention == Retention::default() {
        return true;
    }
    let now_ns = times::now_ms().saturating_mul(1_000_000);
    let mut expired = expired(retention, now_ns, registry.ended());
    let is_done = expired.len() <= MAX_REMOVALS_PER_PASS;
    expired.truncate(MAX_REMOVALS_PER_PASS);
    let mut failed = 0;
    for EndedAgent { id, .. } in &expired {
        if let Err(error) = registry.remove(id).await {
            failed += 1;
            tracing::warn!(%id, %error, "cannot remove ended agent; the next pass tries again");
        }
    }
    let removed = expired.len() - failed;
    if removed > 0 {
        tracing::info!(
            removed,
            "ended agents removed by retain_ended_for and retain_ended_count"
        );
    }
    is_done || failed > 0
}

/// Returns those ended agents that have expired, the oldest first.
fn expired(retention: Retention, now_ns: u64, mut ended: Vec<EndedAgent>) -> Vec<EndedAgent> {
    ended.sort();
    let by_count = retention.count.map_or(0, |count| {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        ended.len().saturating_sub(count)
    });
    let by_age = retention.age.map_or(0, |age| {
        let age = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
        let limit = now_ns.saturating_sub(age);
        ended.partition_point(|agent| agent.ended_at_ns < limit)
    });
    ended.truncate(by_count.max(by_age));
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_agents_expire_by_age_and_count() {
        let ended = || {
            let agents = [("c", 30), ("a", 10), ("b", 20), ("d", 40)];
            let agents = agents.map(|(id, ended_s)| EndedAgent {
                ended_at_ns: ended_s * 1_000_000_000,
                id: id.parse().unwrap(),
            });
            agents.to_vec()
        };
        for (age_s, count, removed) in [
            (None, None, ""),
            (None, Some(4), ""),
            (None, Some(3), "a"),
            (None, Some(0), "abcd"),
            (Some(30), None, "a"),
            (Some(100), None, ""),
            (Some(30), Some(2), "ab"),
            (Some(14), Some(3), "abc"),
            (Some(0), None, "abcd"),
        ] {
            let retention = Retention {
                age: age_s.map(Duration::from_secs),
                count,
            };
            let ids = expired(retention, 45_000_000_000, ended());
            let ids: String = ids.iter().map(|agent| agent.id.as_str()).collect();
            assert_eq!(ids, removed, "{age_s:?} {count:?}");
        }
    }
}
