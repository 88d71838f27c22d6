//! Alternatives on Linux: inotify(7) watches the stored output, and containers use Linux namespaces.

mod conmon;
mod oci;
mod pm2;
mod s6;
mod supervisord;
mod systemd;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::{Copies, Peers, Places, SYSTEMD_RUN, Spawns, a_line};
use crate::spawn::COMMAND;
use oci::Runtime;

pub(super) fn add_spawning(peers: &mut Peers<dyn Spawns>, places: &Places) {
    fn once(peer: &mut (dyn Spawns + 'static)) -> Result<Duration> {
        peer.first_byte(COMMAND)
    }
    fn boxed<P: Spawns + 'static>(peer: Result<P>) -> Result<Box<dyn Spawns>> {
        peer.map(|peer| Box::new(peer) as Box<dyn Spawns>)
    }
    for runtime in Runtime::ALL {
        peers.add(runtime.name(), boxed(oci::Container::new(*runtime)), once);
    }
    for runtime in Runtime::ALL {
        let peer = boxed(conmon::Conmon::new(*runtime));
        peers.add(runtime.name_with_conmon(), peer, once);
    }
    peers.add(SYSTEMD_RUN, boxed(systemd::SystemdRun::new()), once);
    peers.add(
        supervisord::NAME,
        boxed(supervisord::Supervisord::new()),
        once,
    );
    peers.add(s6::NAME, boxed(s6::S6::new()), once);
    peers.add(pm2::NAME, boxed(pm2::Pm2::new(&places.tools)), once);
}

pub(super) fn add_copying(peers: &mut Peers<dyn Copies>, places: &Places) {
    fn boxed<P: Copies + 'static>(peer: Result<P>) -> Result<Box<dyn Copies>> {
        peer.map(|peer| Box::new(peer) as Box<dyn Copies>)
    }
    for runtime in Runtime::ALL {
        let peer = boxed(conmon::Conmon::new(*runtime));
        peers.add(runtime.name_with_conmon(), peer, a_line);
    }
    peers.add(
        supervisord::NAME,
        boxed(supervisord::Supervisord::new()),
        a_line,
    );
    peers.add(s6::NAME, boxed(s6::S6::new()), a_line);
    peers.add(pm2::NAME, boxed(pm2::Pm2::new(&places.tools)), a_line);
}

/// Returns a directory for an alternative, on the same file system as Colibri's and outside /tmp, which sandboxes
/// replace.
fn directory() -> Result<TempDir> {
    Ok(tempfile::Builder::new()
        .prefix("colibri-bench-")
        .tempdir_in("/var/tmp")?)
}

/// Runs a program and checks its exit status.
fn quietly(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    ensure!(
        output.status.success(),
        "{program} failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Returns a path as text for configuration files.
fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the path is not UTF-8")
}
