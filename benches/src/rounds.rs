//! Rounds: each measures every subject once, in a different order, so that noise which lasts longer than a round
//! affects all of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::peers::{Named, Peers};
use crate::report::{Row, Table, Unit};
use crate::stats::Samples;

/// Returns a table with a row for each alternative, including unavailable ones. The first row is that of the first
/// one.
pub(crate) fn measure<P: Named + ?Sized>(
    title: &str,
    unit: Unit,
    peers: &mut Peers<P>,
    rounds: usize,
    mut once: impl FnMut(&mut P) -> Result<f64>,
) -> Result<Table> {
    let mut table = Table::new(title);
    table.rows.extend(peers.present.iter().map(|peer| Row {
        subject: peer.name(),
        unit,
        samples: Samples::default(),
        note: peer.note(),
    }));
    // Clean up before exiting on a signal.
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let mut order: Vec<usize> = (0..peers.present.len()).collect();
    // The first round warms caches and is not counted.
    for round in 0..=rounds {
        fastrand::shuffle(&mut order);
        for at in &order {
            let (Some(peer), Some(row)) = (peers.present.get_mut(*at), table.rows.get_mut(*at))
            else {
                continue;
            };
            ensure!(
                !interrupted.load(Ordering::Relaxed),
                "interrupted by a signal"
            );
            let value = once(peer).with_context(|| format!("{}, round {round}", row.subject))?;
            if round > 0 {
                row.samples.0.push(value);
            }
        }
    }
    table.rows.extend(peers.absent.iter().map(|absent| Row {
        subject: absent.name.to_owned(),
        unit,
        samples: Samples::default(),
        note: Some(format!("not available: {}", absent.why)),
    }));
    Ok(table)
}
