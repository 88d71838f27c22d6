//! Results of diagnostic checks.

use serde::{Deserialize, Serialize};

/// Severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum FindingStatus {
    /// The check passed.
    Ok,
    /// It works, with a limitation.
    Warn,
    /// It does not work.
    Fail,
}

/// The result of one diagnostic check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Finding {
    /// Severity.
    pub status: FindingStatus,
    /// What the check found.
    pub what: String,
    /// How to fix it; absent if nothing needs to be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Finding {
    fn new(status: FindingStatus, what: impl Into<String>, fix: Option<String>) -> Self {
        let what = what.into();
        Self { status, what, fix }
    }

    /// Returns a finding for a check that passed.
    #[must_use]
    pub fn ok(what: impl Into<String>) -> Self {
        Self::new(FindingStatus::Ok, what, None)
    }

    /// Returns a finding for something that works with a limitation, and how to lift it.
    #[must_use]
    pub fn warn(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(FindingStatus::Warn, what, Some(fix.into()))
    }

    /// Returns a finding for something that does not work, and how to fix it.
    #[must_use]
    pub fn fail(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(FindingStatus::Fail, what, Some(fix.into()))
    }
}
