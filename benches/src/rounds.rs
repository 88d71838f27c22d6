//! Rounds: each measures every alternative once, in random order, so that noise which lasts longer than a round affects
//! all alternatives.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::peers::{Peer, Peers};
use crate::report::{Row, Table, Unit};
use crate::stats::Samples;

/// Returns a table with a row for each alternative, including unavailable ones, in their order.
pub(crate) fn measure<P: Peer + ?Sized>(
    title: &str,
    unit: Unit,
    peers: &mut Peers<P>,
    rounds: usize,
    mut measure_once: impl FnMut(&mut P) -> Result<f64>,
) -> Result<Table> {
    let mut table = Table::new(title);
    table.rows.extend(peers.available.iter().map(|peer| Row {
        subject: peer.name(),
        unit,
        samples: Samples::default(),
        note: peer.note(),
    }));
    // A signal ends the measurement by an error, so that the alternatives are dropped and clean up.
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let mut order: Vec<usize> = (0..peers.available.len()).collect();
    // The first round warms caches and is not counted.
    for round in 0..=rounds {
        fastrand::shuffle(&mut order);
        for index in &order {
            let (Some(peer), Some(row)) =
                (peers.available.get_mut(*index), table.rows.get_mut(*index))
            else {
                continue;
            };
            ensure!(
                !interrupted.load(Ordering::Relaxed),
                "interrupted by a signal"
            );
            let value =
                measure_once(peer).with_context(|| format!("{}, round {round}", row.subject))?;
            if round > 0 {
                row.samples.0.push(value);
            }
        }
    }
    table.rows.extend(peers.unavailable.iter().map(|peer| Row {
        subject: peer.name.to_owned(),
        unit,
        samples: Samples::default(),
        note: Some(format!("not available: {}", peer.reason)),
    }));
    Ok(table)
}
