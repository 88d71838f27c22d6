//! `version` and `doctor`.

use colibri_prepare::{ConfinementOwner, Installation, KnownConfinement};
use colibri_priv::Finding;
use colibri_proto::{DoctorResult, VersionResult};
use colibri_spawner::StateDir;

use crate::daemon::DaemonState;
use crate::pool;

pub(super) fn version() -> VersionResult {
    VersionResult {
        name: "colibri-daemon".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        protocol: 1,
    }
}

pub(super) async fn doctor(daemon: &DaemonState) -> DoctorResult {
    let spawner = daemon.registry.spawner();
    let running = daemon.registry.list_running();
    let agents = running
        .iter()
        .filter(|agent| !agent.has_ended())
        .map(|agent| {
            let owner = ConfinementOwner::Agent(agent.spec.id.to_string());
            KnownConfinement::new(owner, agent.spec.config.jail.as_ref())
        });
    let installation = Installation {
        shim: spawner.shim.clone(),
        state_dir: spawner.state.path().to_owned(),
        socket: daemon.socket.clone(),
        confinements: agents.chain(daemon.config.confinements()).collect(),
    };
    let mut findings = spawner.preparer.preflight(&installation).await;
    let removed = pool::run(move || removed_state_finding(&spawner.state)).await;
    findings.extend(removed);
    findings.extend(daemon.config.findings());
    DoctorResult { findings }
}

/// Returns a finding if the state directory was removed while the daemon runs.
fn removed_state_finding(state: &StateDir) -> Option<Finding> {
    state.is_removed().then(|| {
        Finding::fail(
            format!(
                "state directory {} was removed while the daemon runs: no agent can be started, and the output of ended agents is lost",
                state.path().display()
            ),
            "restart the daemon, which creates the directory: run colibri shutdown, then any other command",
        )
    })
}
