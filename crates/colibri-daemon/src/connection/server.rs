//! Accepts connections, checks who is there, and ends them all on the way down.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::geteuid;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};

use super::serve;
use crate::daemon::audit::{Audit, Peer};
use crate::daemon::config::Configuration;
use crate::registry::Registry;

/// Connections at a time; more wait in the listener's backlog.
const CONNECTIONS: usize = 512;
/// How long answers on their way may take at the end.
const FAREWELL: Duration = Duration::from_secs(1);

/// What connections share.
pub(crate) struct Server {
    pub(crate) registry: Arc<Registry>,
    pub(crate) audit: Audit,
    pub(crate) config: Configuration,
    pub(crate) socket: PathBuf,
    /// True when the daemon ends.
    pub(crate) ending: watch::Sender<bool>,
    group: Option<u32>,
    slots: Arc<Semaphore>,
}

impl Server {
    pub(crate) fn new(
        registry: Arc<Registry>,
        config: Configuration,
        audit: Audit,
        socket: PathBuf,
        group: Option<u32>,
    ) -> Self {
        Self {
            registry,
            socket,
            config,
            audit,
            ending: watch::channel(false).0,
            group,
            slots: Arc::new(Semaphore::new(CONNECTIONS)),
        }
    }

    /// Serves until somebody asks the daemon to end.
    pub(crate) async fn accept(self: Arc<Self>, listener: &UnixListener) {
        let mut ending = self.ending.subscribe();
        loop {
            let Ok(slot) = self.slots.clone().acquire_owned().await else {
                return;
            };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = ending.wait_for(|ending| *ending) => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    let server = self.clone();
                    tokio::spawn(async move {
                        server.serve(stream).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    // No descriptors left: those that end free some. Without a pause this would spin.
                    tracing::error!(%error, "connection not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn serve(self: Arc<Self>, stream: UnixStream) {
        let peer = match stream.peer_cred() {
            Ok(cred) => Peer {
                uid: cred.uid(),
                gid: cred.gid(),
                pid: cred.pid(),
            },
            Err(error) => return tracing::warn!(%error, "peer without credentials refused"),
        };
        // With a group configured the socket's mode has decided already.
        let allowed = self.group.is_some() || peer.uid == 0 || peer.uid == geteuid().as_raw();
        if !allowed {
            tracing::warn!(?peer, "peer refused");
        }
        let metrics = self.registry.observers.metrics.clone();
        if let Some(metrics) = &metrics {
            metrics.connected(allowed);
            metrics.connections.inc();
        }
        serve(self, stream, peer, allowed).await;
        if let Some(metrics) = &metrics {
            metrics.connections.dec();
        }
    }

    /// Tells all connections to end, waits a little for them, and says how many agents run on.
    pub(crate) async fn shut_down(&self) -> usize {
        self.ending.send_replace(true);
        let all = u32::try_from(CONNECTIONS).unwrap_or(u32::MAX);
        let answers = tokio::time::timeout(FAREWELL, self.slots.acquire_many(all));
        match &self.registry.observers.hooks {
            Some(hooks) => drop(tokio::join!(answers, hooks.end(FAREWELL))),
            None => drop(answers.await),
        }
        self.registry.spawner.end_ahead().await;
        self.registry.running()
    }
}
