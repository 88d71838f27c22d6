//! Alternatives that run only on Linux: containers and supervisors, whose output inotify(7) watches.

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

use super::{Directories, Peers, SYSTEMD_RUN, SpawnPeer, StorePeer, store_one_line};
use crate::spawn::COMMAND;
use oci::Runtime;

pub(super) fn add_spawning(peers: &mut Peers<dyn SpawnPeer>, directories: &Directories) {
    fn trial_run(peer: &mut (dyn SpawnPeer + 'static)) -> Result<Duration> {
        peer.first_byte(COMMAND)
    }
    fn boxed<P: SpawnPeer + 'static>(peer: Result<P>) -> Result<Box<dyn SpawnPeer>> {
        peer.map(|peer| Box::new(peer) as Box<dyn SpawnPeer>)
    }
    for runtime in Runtime::ALL {
        peers.add(
            runtime.name(),
            boxed(oci::Container::new(*runtime)),
            trial_run,
        );
    }
    for runtime in Runtime::ALL {
        let peer = boxed(conmon::Conmon::new(*runtime));
        peers.add(runtime.name_with_conmon(), peer, trial_run);
    }
    peers.add(SYSTEMD_RUN, boxed(systemd::SystemdRun::new()), trial_run);
    peers.add(
        supervisord::NAME,
        boxed(supervisord::Supervisord::new()),
        trial_run,
    );
    peers.add(s6::NAME, boxed(s6::S6::new()), trial_run);
    peers.add(
        pm2::NAME,
        boxed(pm2::Pm2::new(&directories.tools)),
        trial_run,
    );
}

pub(super) fn add_storing(peers: &mut Peers<dyn StorePeer>, directories: &Directories) {
    fn boxed<P: StorePeer + 'static>(peer: Result<P>) -> Result<Box<dyn StorePeer>> {
        peer.map(|peer| Box::new(peer) as Box<dyn StorePeer>)
    }
    for runtime in Runtime::ALL {
        let peer = boxed(conmon::Conmon::new(*runtime));
        peers.add(runtime.name_with_conmon(), peer, store_one_line);
    }
    peers.add(
        supervisord::NAME,
        boxed(supervisord::Supervisord::new()),
        store_one_line,
    );
    peers.add(s6::NAME, boxed(s6::S6::new()), store_one_line);
    peers.add(
        pm2::NAME,
        boxed(pm2::Pm2::new(&directories.tools)),
        store_one_line,
    );
}

/// Creates a directory for an alternative, on the file system of Colibri's directory, and not in /tmp, which sandboxes
/// replace.
fn create_directory() -> Result<TempDir> {
    Ok(tempfile::Builder::new()
        .prefix("colibri-bench-")
        .tempdir_in("/var/tmp")?)
}

/// Runs a program and checks its exit status.
fn run_checked(command: &mut Command) -> Result<()> {
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

/// Returns a path as text.
fn path_text(path: &Path) -> Result<&str> {
    path.to_str().context("the path is not UTF-8")
}
