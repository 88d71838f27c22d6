//! Request ids, kept as raw JSON, so that numbers of any length are returned without loss.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Maximum length of a request id, in bytes of JSON.
pub const MAX_ID: usize = 4096;

/// The id of a request: a JSON number, string or null, exactly as the caller wrote it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(Box<RawValue>);

impl RequestId {
    /// Returns the id for an answer to a request whose id cannot be read.
    #[must_use]
    pub fn null() -> Self {
        Self(RawValue::NULL.to_owned())
    }

    /// Returns the id in a request; `None` if the value is not a valid id.
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

    /// Returns the id as a number, if it is one of 64 bits.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        self.0.get().parse().ok()
    }
}

impl From<u64> for RequestId {
    fn from(number: u64) -> Self {
        // A number is always valid JSON.
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
