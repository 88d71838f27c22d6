//! Ids of requests, kept as they were written: no number is too long, and no digit is lost.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Longest id of a request, in bytes as it is written.
pub const MAX_ID: usize = 4096;

/// The id of a request: a number, a text or null, as its caller wrote it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(Box<RawValue>);

impl RequestId {
    /// Returns the id of an answer to what could not be read.
    #[must_use]
    pub fn null() -> Self {
        Self(RawValue::NULL.to_owned())
    }

    /// Takes over what a caller wrote; `None` where that cannot be an id.
    pub(crate) fn of(raw: &RawValue) -> Option<Self> {
        let text = raw.get();
        let fits = text.len() <= MAX_ID
            && match text.as_bytes().first() {
                Some(b'"') => serde_json::from_str::<String>(text).is_ok(),
                Some(b'-' | b'0'..=b'9') => true,
                _ => text == "null",
            };
        fits.then(|| Self(raw.to_owned()))
    }

    /// Returns the id as JSON.
    #[must_use]
    pub fn as_json(&self) -> &str {
        self.0.get()
    }

    /// Returns the id as a number, if it is one of 64 bits.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        self.0.get().parse().ok()
    }
}

impl From<u64> for RequestId {
    fn from(number: u64) -> Self {
        // A number is always JSON.
        RawValue::from_string(number.to_string()).map_or_else(|_| Self::null(), Self)
    }
}

impl PartialEq for RequestId {
    fn eq(&self, other: &Self) -> bool {
        self.0.get() == other.0.get()
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.get())
    }
}
