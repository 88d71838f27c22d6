//! The latest reports of the proxy of an agent, for observers that read them at their own speed.

use std::collections::VecDeque;
use std::sync::Arc;

use colibri_types::NetworkRecord;

/// Maximum number of records that are kept. An observer that is further behind gets the later ones, and their number.
const MAX_RECORDS: usize = 64;

/// Reports of an agent's proxy since this process follows the agent. Clones share the records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkLog {
    total: u64,
    recent: Arc<VecDeque<Arc<NetworkRecord>>>,
}

/// The records that a later log has in addition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRecords {
    /// Number of earlier ones that are not kept.
    pub missed: u64,
    /// The records, oldest first.
    pub records: Vec<Arc<NetworkRecord>>,
}

impl NetworkLog {
    /// Adds a record.
    pub fn push(&mut self, record: NetworkRecord) {
        self.total = self.total.saturating_add(1);
        let recent = Arc::make_mut(&mut self.recent);
        while recent.len() >= MAX_RECORDS {
            recent.pop_front();
        }
        recent.push_back(Arc::new(record));
    }

    /// Returns the records that are not in `before`, an earlier state of this log.
    #[must_use]
    pub fn since(&self, before: &Self) -> NewRecords {
        let added = self.total.saturating_sub(before.total);
        let kept = usize::try_from(added)
            .unwrap_or(MAX_RECORDS)
            .min(self.recent.len());
        NewRecords {
            missed: added.saturating_sub(kept as u64),
            records: self.recent.iter().rev().take(kept).rev().cloned().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use colibri_types::NetworkAction;

    fn record(port: u16) -> NetworkRecord {
        NetworkRecord {
            at: String::new(),
            action: NetworkAction::Refused,
            host: None,
            port: Some(port),
            reason: None,
            count: None,
        }
    }

    #[test]
    fn observer_gets_new_records_and_the_number_of_missed_ones() {
        let mut log = NetworkLog::default();
        let ports = |new: NewRecords| {
            let ports = new.records.iter().filter_map(|record| record.port);
            (new.missed, ports.collect::<Vec<_>>())
        };
        assert_eq!(ports(log.since(&log)), (0, vec![]));
        let empty = log.clone();
        log.push(record(1));
        log.push(record(2));
        let two = log.clone();
        assert_eq!(ports(log.since(&empty)), (0, vec![1, 2]));
        log.push(record(3));
        assert_eq!(ports(log.since(&two)), (0, vec![3]));
        for port in 4..=100 {
            log.push(record(port));
        }
        let (missed, kept) = ports(log.since(&empty));
        assert_eq!((missed, kept.len(), kept[0], kept[63]), (36, 64, 37, 100));
        assert_eq!(ports(log.since(&two)).0, 34);
    }
}
