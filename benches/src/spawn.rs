//! Time from a spawn request until the caller has the first byte of output.

use anyhow::Result;

use crate::peers::{Peers, SpawnPeer};
use crate::report::{Table, Unit};
use crate::rounds;

/// The measured command: writes a line feed and waits for its kill.
pub(crate) const COMMAND: &[&str] = &["/bin/sh", "-c", "echo; exec sleep 100000"];

/// Measures every alternative once in each round.
pub(crate) fn measure(peers: &mut Peers<dyn SpawnPeer>, rounds: usize) -> Result<Table> {
    rounds::measure(
        "From the request to the first byte",
        Unit::Seconds,
        peers,
        rounds,
        |peer| Ok(peer.first_byte(COMMAND)?.as_secs_f64()),
    )
}
