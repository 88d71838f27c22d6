//! Bytes of agents on the wire: as text where they are UTF-8, as base64 where they are not.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How `data` is to be read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// The text is the bytes.
    #[default]
    Utf8,
    /// Standard base64 with padding (RFC 4648).
    Base64,
}

/// Bytes, and how they are written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OutputData {
    /// Text, or base64.
    pub data: String,
    /// Which of them.
    #[serde(default)]
    pub encoding: Encoding,
}

/// `data` is not what `encoding` says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("data is not valid base64: {0}")]
pub struct DataError(String);

impl OutputData {
    /// Writes bytes as text if they are.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self {
                data: text.to_owned(),
                encoding: Encoding::Utf8,
            },
            Err(_) => Self::base64(bytes),
        }
    }

    fn base64(bytes: &[u8]) -> Self {
        Self {
            data: STANDARD.encode(bytes),
            encoding: Encoding::Base64,
        }
    }

    /// The bytes.
    ///
    /// # Errors
    /// The data says base64 and is not.
    pub fn into_bytes(self) -> Result<Vec<u8>, DataError> {
        match self.encoding {
            Encoding::Utf8 => Ok(self.data.into_bytes()),
            Encoding::Base64 => STANDARD
                .decode(&self.data)
                .map_err(|error| DataError(error.to_string())),
        }
    }
}

/// As [`OutputData::from_bytes`], without a copy where they are text.
impl From<Vec<u8>> for OutputData {
    fn from(bytes: Vec<u8>) -> Self {
        match String::from_utf8(bytes) {
            Ok(data) => Self {
                data,
                encoding: Encoding::Utf8,
            },
            Err(error) => Self::base64(error.as_bytes()),
        }
    }
}

/// How many of these bytes to take so that a character which only the end of the buffer cuts stays whole.
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
    fn only_a_character_at_the_end_is_left_for_later() {
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
        fn bytes_come_back(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let data = OutputData::from_bytes(&bytes);
            prop_assert_eq!(&data, &OutputData::from(bytes.clone()));
            prop_assert_eq!(data.into_bytes().unwrap(), bytes);
        }
    }
}
