//! Input and output bytes of agents: as text if they are UTF-8, otherwise as base64.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Encoding of `data`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// `data` is the text itself, in UTF-8.
    #[default]
    Utf8,
    /// `data` is standard base64 with padding (RFC 4648).
    Base64,
}

/// Input or output bytes of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OutputData {
    /// The bytes, as text or as base64.
    pub data: String,
    /// Encoding of `data`; default `utf8`.
    #[serde(default)]
    pub encoding: Encoding,
}

/// `data` is not valid in its `encoding`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("data is not valid base64: {0}")]
pub struct DataError(#[from] base64::DecodeError);

impl OutputData {
    /// Decodes the bytes.
    ///
    /// # Errors
    /// `encoding` is base64 and `data` is not valid base64.
    pub fn into_bytes(self) -> Result<Vec<u8>, DataError> {
        match self.encoding {
            Encoding::Utf8 => Ok(self.data.into_bytes()),
            Encoding::Base64 => Ok(STANDARD.decode(&self.data)?),
        }
    }
}

/// Encodes bytes: as text if they are UTF-8, otherwise as base64. Text is not copied.
impl From<Vec<u8>> for OutputData {
    fn from(bytes: Vec<u8>) -> Self {
        match String::from_utf8(bytes) {
            Ok(data) => Self {
                data,
                encoding: Encoding::Utf8,
            },
            Err(error) => Self {
                data: STANDARD.encode(error.as_bytes()),
                encoding: Encoding::Base64,
            },
        }
    }
}

/// Returns the number of bytes before an incomplete UTF-8 character at the end of `bytes`; all of them if there is none, or if
/// nothing precedes it.
#[must_use]
pub fn text_boundary(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() && error.valid_up_to() > 0 => error.valid_up_to(),
        _ => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_boundary_excludes_an_incomplete_last_character() {
        for (bytes, taken) in [
            (&b"abc"[..], 3),
            ("aé".as_bytes(), 3),
            (&"aé".as_bytes()[..2], 1),
            (&"a€".as_bytes()[..3], 1),
            (&[0xe2, 0x82], 2),
            (&[b'a', 0xff, b'b'], 3),
            (&[b'a', 0xff, 0xe2], 3),
            (&[], 0),
        ] {
            assert_eq!(text_boundary(bytes), taken, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn encoded_bytes_decode_to_the_same_bytes(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(OutputData::from(bytes.clone()).into_bytes().unwrap(), bytes);
        }
    }
}
