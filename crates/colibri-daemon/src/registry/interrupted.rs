//! Agents that ran when the machine was stopped.

use std::collections::BTreeSet;
use std::sync::Arc;

use colibri_glasspane::AgentState;
use colibri_shim::record::{self, Durability, ExitRecord};
use colibri_spawner::AgentSpec;
use colibri_types::{AgentId, ExitReason};

use super::Registry;
use crate::agent::{PendingResume, RegisteredAgent};
use crate::pool;

/// File in the directory of an ended agent that is not resumed again.
const RESUMED_FILE: &str = "resumed.json";

impl Registry {
    /// Returns the agents that ran when the machine was stopped, are resumed after that, and have not been.
    pub(crate) async fn interrupted(&self, boot: &str) -> Vec<Arc<RegisteredAgent>> {
        let found: Vec<_> = {
            let agents = self.agents.read();
            let all = agents.by_id.values();
            // Of agents whose directory could not be marked.
            let resumed: BTreeSet<&str> = all
                .clone()
                .filter_map(|agent| agent.spec.config.resumes.as_deref())
                .collect();
            let found = all.filter(|agent| {
                let latest = agent.latest.borrow();
                let exit = latest.exit.as_ref();
                exit.is_some_and(|exit| was_interrupted(&agent.spec, exit, boot))
                    && !resumed.contains(agent.spec.id.as_str())
            });
            found.cloned().collect()
        };
        pool::run(move || {
            let is_new =
                |agent: &Arc<RegisteredAgent>| !agent.directory.join(RESUMED_FILE).exists();
            found.into_iter().filter(is_new).collect()
        })
        .await
    }

    /// Lets an ended agent wait as `blocked` until it is resumed, killed or removed.
    pub(crate) fn block_until_resumed(&self, agent: &Arc<RegisteredAgent>, message: String) {
        let id = agent.spec.id.clone();
        self.agents.write().waiting.insert(id, agent.clone());
        let before = agent.latest.borrow().clone();
        agent.latest.send_modify(|latest| {
            let state = std::mem::replace(&mut latest.view.state, AgentState::Blocked);
            latest.waiting = Some(PendingResume { message, state });
            latest.state_changes += 1;
        });
        if let Some(hooks) = &self.observers.hooks {
            let now = agent.latest.borrow().clone();
            hooks.publish(agent, Some(&before), &now);
        }
    }

    /// Records that an agent is not resumed again after a start of the machine. A failure is logged.
    pub(crate) async fn end_resume_wait(&self, id: &str) {
        let found = id.parse().ok().and_then(|id: AgentId| self.get(&id));
        let Some(agent) = found.filter(|agent| agent.has_ended()) else {
            return;
        };
        self.agents.write().waiting.remove(&agent.spec.id);
        agent.latest.send_if_modified(|latest| {
            let waiting = latest.waiting.take();
            waiting.is_some_and(|waiting| {
                latest.view.state = waiting.state;
                latest.state_changes += 1;
                true
            })
        });
        let path = agent.directory.join(RESUMED_FILE);
        pool::run(move || {
            if let Err(error) = record::replace(&path, &true, Durability::Machine) {
                tracing::warn!(path = %path.display(), %error, "cannot record that an agent was resumed");
            }
        })
        .await;
    }
}

/// Reports whether an agent ran in an earlier boot until the machine was stopped, and is resumed after that.
fn was_interrupted(spec: &AgentSpec, exit: &ExitRecord, boot: &str) -> bool {
    let restart = spec.config.restart.as_ref();
    let is_wanted = restart.is_some_and(|restart| restart.when().resumes_after_reboot())
        // Started again by its entry.
        && spec.config.autostart.is_none();
    let is_earlier = spec.boot.as_deref().is_some_and(|earlier| earlier != boot);
    // At a shutdown, all processes get SIGTERM (systemd-shutdown(8), init(8)), the shim too.
    let was_stopped = exit.terminated || exit.exit().reason == ExitReason::Lost;
    is_wanted && is_earlier && was_stopped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agent_that_ran_until_a_shutdown_was_interrupted() {
        let lost = r#"{"reason":"lost"}"#;
        let table = [
            ("always", Some("1"), lost, true),
            ("on-reboot", Some("1"), lost, true),
            (
                "on-reboot",
                Some("1"),
                r#"{"reason":"signalled","exit":{"signal":15}}"#,
                false,
            ),
            (
                "on-reboot",
                Some("1"),
                r#"{"reason":"signalled","exit":{"signal":9}}"#,
                false,
            ),
            (
                "on-reboot",
                Some("1"),
                r#"{"reason":"exited","exit":{"code":0}}"#,
                false,
            ),
            (
                "always",
                Some("1"),
                r#"{"reason":"exited","exit":{"code":0},"terminated":true}"#,
                true,
            ),
            (
                "always",
                Some("1"),
                r#"{"reason":"killed-by-user","exit":{"signal":15}}"#,
                false,
            ),
            ("on-failure", Some("1"), lost, false),
            ("never", Some("1"), lost, false),
            ("always", Some("2"), lost, false),
            ("always", None, lost, false),
        ];
        for (policy, boot, exit, expected) in table {
            let mut spec: AgentSpec =
                serde_json::from_value(crate::registry::tests::spec("k3x9abcdef")).unwrap();
            spec.config.restart =
                Some(serde_json::from_value(serde_json::json!({"policy": policy})).unwrap());
            spec.boot = boot.map(str::to_owned);
            let mut record: serde_json::Value = serde_json::from_str(exit).unwrap();
            for field in ["exited_at_ns", "stdout_bytes", "stderr_bytes"] {
                record[field] = 0.into();
            }
            let record = serde_json::from_value(record).unwrap();
            assert_eq!(
                was_interrupted(&spec, &record, "2"),
                expected,
                "{policy} {boot:?} {exit}"
            );
        }
    }
}
