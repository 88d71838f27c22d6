//! What the proxy of an agent refused.

use serde::{Deserialize, Serialize};

/// What a record of the proxy reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum NetworkAction {
    /// A connection or a request was refused.
    Refused,
    /// More was refused than is recorded: `count`.
    Dropped,
    /// The file of the records is full. Only in that file.
    Full,
}

/// A report of the proxy of an agent. The agent chooses host and reason in part; all texts are printable ASCII.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NetworkRecord {
    /// Time (RFC 3339).
    pub at: String,
    /// What happened.
    pub action: NetworkAction,
    /// Host that the agent requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Port that the agent requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Why it was refused, as a clause that follows the destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Number of dropped records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

/// What the proxy of an agent has refused in all runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NetworkSummary {
    /// Number of refused connections and requests.
    pub refused: u64,
    /// The last recorded one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<NetworkRecord>,
}

impl NetworkSummary {
    /// Adds a record.
    pub fn add(&mut self, record: &NetworkRecord) {
        match record.action {
            NetworkAction::Refused => {
                self.refused = self.refused.saturating_add(1);
                self.last = Some(record.clone());
            }
            NetworkAction::Dropped => {
                self.refused = self.refused.saturating_add(record.count.unwrap_or(0));
            }
            NetworkAction::Full => {}
        }
    }
}
