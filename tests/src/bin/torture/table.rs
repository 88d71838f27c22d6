//! The faults and the table of their effects.

use std::collections::BTreeMap;
use std::fmt;

use colibri_tests::lines::Difference;

/// An injected fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    DaemonKilled,
    DuringSpawn,
    DuringKill,
    DuringRemove,
    ClientKilled,
    ShimKilled,
    ShimKilledUnseen,
    TermAtSpawn,
    RunInterrupted,
    Flood,
    OverlappingSpawns,
    ForkBomb,
    DirectoryRemoved,
}

impl Fault {
    const ALL: [(Self, &str); 13] = [
        (Self::DaemonKilled, "daemon killed"),
        (Self::DuringSpawn, "daemon killed during a spawn"),
        (Self::DuringKill, "daemon killed during a kill"),
        (Self::DuringRemove, "daemon killed during a removal"),
        (Self::ClientKilled, "client killed"),
        (Self::ShimKilled, "shim killed"),
        (Self::ShimKilledUnseen, "shim killed while no daemon runs"),
        (Self::TermAtSpawn, "TERM right after a spawn"),
        (Self::RunInterrupted, "run with restarts interrupted"),
        (Self::Flood, "flood of events"),
        (Self::OverlappingSpawns, "overlapping spawns"),
        (Self::ForkBomb, "fork bomb"),
        (Self::DirectoryRemoved, "directory of an agent removed"),
    ];
}

/// Losses by one kind of fault.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Row {
    pub(crate) injected: u64,
    pub(crate) bytes: u64,
    pub(crate) difference: Difference,
    pub(crate) agents_lost: u64,
    pub(crate) exit_codes_lost: u64,
}

/// Losses by fault. A loss counts for the latest fault of its agent.
#[derive(Default)]
pub(crate) struct Table {
    rows: BTreeMap<Fault, Row>,
    /// Number of checked agents.
    pub(crate) agents: u64,
    /// Number of bytes of these agents, each counted once.
    pub(crate) bytes: u64,
}

impl Table {
    pub(crate) fn row(&mut self, fault: Fault) -> &mut Row {
        self.rows.entry(fault).or_default()
    }

    pub(crate) fn is_lossless(&self) -> bool {
        self.rows.values().all(|row| {
            (row.difference, row.agents_lost, row.exit_codes_lost) == (Difference::default(), 0, 0)
        })
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<32}  {:>8}  {:>13}  {:>6}  {:>8}  {:>11}  {:>15}",
            "fault",
            "injected",
            "bytes checked",
            "lost",
            "repeated",
            "agents lost",
            "exit codes lost"
        )?;
        for (fault, name) in Fault::ALL {
            let row = self.rows.get(&fault).copied().unwrap_or_default();
            writeln!(
                f,
                "{name:<32}  {:>8}  {:>13}  {:>6}  {:>8}  {:>11}  {:>15}",
                row.injected,
                row.bytes,
                row.difference.lost,
                row.difference.repeated,
                row.agents_lost,
                row.exit_codes_lost
            )?;
        }
        writeln!(
            f,
            "{} agents and {} bytes in total, each followed and compared with the checksum of its writer; \
             the bytes of an agent count for every fault injected into it",
            self.agents, self.bytes
        )
    }
}
