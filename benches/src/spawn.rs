//! From the spawn request until the caller has the first byte.

use anyhow::Result;

use crate::peers::{Peers, Spawns};
use crate::report::{Table, Unit};
use crate::rounds;

/// Writes a line feed and waits to be ended.
pub(crate) const COMMAND: &[&str] = &["/bin/sh", "-c", "echo; exec sleep 100000"];

/// Measures every alternative once in each round.
pub(crate) fn measure(peers: &mut Peers<dyn Spawns>, rounds: usize) -> Result<Table> {
    rounds::measure(
        "From the request to the first byte",
        Unit::Seconds,
        peers,
        rounds,
        |peer| Ok(peer.first_byte(COMMAND)?.as_secs_f64()),
    )
}
