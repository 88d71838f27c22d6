//! Accepts connections, checks the user of each client, and closes all connections at shutdown.

use std::sync::Arc;
use std::time::Duration;

use rustix::process::geteuid;
use tokio::net::UnixStream;

use super::serve_connection;
use crate::daemon::DaemonState;
use crate::daemon::audit::Peer;
use crate::metrics::MetricsEvent;
use crate::socket::{ListeningSocket, accept_all};

/// Maximum number of concurrent connections; more wait in the listener's backlog.
pub(crate) const MAX_CONNECTIONS: u32 = 512;
/// Timeout at shutdown for answers and hooks in progress.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves connections until a client requests the shutdown of the daemon.
pub(crate) async fn run(daemon: &Arc<DaemonState>, listening: &ListeningSocket) {
    let mut shutdown = daemon.shutdown.subscribe();
    let accept = || listening.listener.accept();
    let handle = |stream| serve(daemon.clone(), listening.group, stream);
    tokio::select! {
        () = accept_all(&daemon.connections, accept, handle) => {}
        _ = shutdown.wait_for(|shutdown| *shutdown) => {}
    }
}

/// Closes all connections, waits for answers and hooks in progress, and returns the number of running agents.
pub(crate) async fn shut_down(daemon: &DaemonState) -> usize {
    daemon.shutdown.send_replace(true);
    let registry = &daemon.registry;
    let answers = daemon.connections.acquire_many(MAX_CONNECTIONS);
    let answers = tokio::time::timeout(SHUTDOWN_TIMEOUT, answers);
    match &registry.observers.hooks {
        Some(hooks) => drop(tokio::join!(answers, hooks.shut_down(SHUTDOWN_TIMEOUT))),
        None => drop(answers.await),
    }
    registry.spawner().drain_shim_pool().await;
    registry.list_running().len()
}

async fn serve(daemon: Arc<DaemonState>, group: Option<u32>, stream: UnixStream) {
    let peer = match stream.peer_cred() {
        Ok(cred) => Peer {
            uid: cred.uid(),
            gid: cred.gid(),
            pid: cred.pid(),
        },
        Err(error) => {
            tracing::warn!(%error, "refusing connection: cannot read the client's credentials");
            return;
        }
    };
    // With a group, the socket's mode has already excluded other users.
    let allowed = group.is_some() || peer.uid == 0 || peer.uid == geteuid().as_raw();
    if !allowed {
        tracing::warn!(
            ?peer,
            "refusing connection: the user may not use this daemon"
        );
    }
    let observers = daemon.registry.observers.clone();
    observers.record(MetricsEvent::ConnectionOpened { allowed });
    serve_connection(daemon, stream, peer, allowed).await;
    observers.record(MetricsEvent::ConnectionClosed);
}
