//! From the request for a program until somebody has its first byte.

use anyhow::{Context, Result};

use crate::peers::Peer;
use crate::report::{Row, Table, Unit};
use crate::stats::Samples;

/// Writes a byte and waits until it is ended.
const COMMAND: &[&str] = &["/bin/sh", "-c", "echo; exec sleep 100000"];

/// Every peer once in each round, in another order each time.
pub(crate) fn measure(peers: &mut [Box<dyn Peer>], rounds: usize) -> Result<Table> {
    let mut table = Table::new("From the request to the first byte");
    table.rows.extend(peers.iter().map(|peer| Row {
        subject: peer.name().to_owned(),
        unit: Unit::Seconds,
        samples: Samples::default(),
        note: None,
    }));
    let mut order: Vec<usize> = (0..peers.len()).collect();
    // The first round fills caches and is not counted.
    for round in 0..=rounds {
        fastrand::shuffle(&mut order);
        for at in &order {
            let (Some(peer), Some(row)) = (peers.get_mut(*at), table.rows.get_mut(*at)) else {
                continue;
            };
            let took = peer
                .first_byte(COMMAND)
                .with_context(|| row.subject.clone())?;
            if round > 0 {
                row.samples.0.push(took.as_secs_f64());
            }
        }
    }
    Ok(table)
}
