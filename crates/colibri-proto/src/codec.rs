//! Frames: one JSON object per line, at most 1 MiB. Memory use is bounded for any input.

use memchr::memchr;
use serde::Serialize;

/// Maximum length of a frame in either direction, in bytes, without its LF.
pub const MAX_FRAME: usize = 1 << 20;
/// Maximum number of bytes that are skipped to find the end of a frame that is too long.
const MAX_SKIPPED_BYTES: usize = 16 << 20;

/// Why a frame cannot be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The frame is too long. It was skipped; the next frame can be read.
    #[error("frame is longer than {MAX_FRAME} bytes; send smaller frames")]
    TooLong,
    /// The frame has no end within the skipped bytes; close the connection.
    #[error(
        "frame is longer than {MAX_SKIPPED_BYTES} bytes and has no end; the connection is closed"
    )]
    Endless,
}

/// Splits a byte stream into frames.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: Vec<u8>,
    /// Number of bytes at the front that belong to returned frames.
    taken: usize,
    /// Number of bytes at the front that were searched for LF.
    searched: usize,
    /// Number of bytes of a too long frame that were dropped.
    skipped: usize,
}

impl FrameDecoder {
    /// Adds bytes. Call [`FrameDecoder::next_frame`] until it returns `None` before the next push: then the decoder holds at
    /// most one frame and one push.
    pub fn push(&mut self, bytes: &[u8]) {
        // Drains once for all frames of the previous push.
        self.buffer.drain(..self.taken);
        self.searched -= self.taken;
        self.taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns the next complete frame, without its line end; `None` if more bytes are needed. Skips empty lines.
    ///
    /// # Errors
    /// The frame is too long.
    pub fn next_frame(&mut self) -> Option<Result<&[u8], FrameError>> {
        let range = loop {
            let unsearched = self.buffer.get(self.searched..)?;
            let Some(end) = memchr(b'\n', unsearched).map(|end| end + self.searched) else {
                self.searched = self.buffer.len();
                let held = self.buffer.len() - self.taken;
                if self.skipped > 0 || held > MAX_FRAME + 1 {
                    self.skipped += held;
                    self.buffer.clear();
                    (self.taken, self.searched) = (0, 0);
                    if self.skipped > MAX_SKIPPED_BYTES {
                        return Some(Err(FrameError::Endless));
                    }
                }
                return None;
            };
            let start = std::mem::replace(&mut self.taken, end + 1);
            self.searched = self.taken;
            let line = self.buffer.get(start..end)?;
            let frame = line.strip_suffix(b"\r").unwrap_or(line);
            let skipped = std::mem::take(&mut self.skipped);
            if skipped > 0 || frame.len() > MAX_FRAME {
                return Some(Err(FrameError::TooLong));
            }
            if !frame.iter().all(u8::is_ascii_whitespace) {
                break start..start + frame.len();
            }
        };
        self.buffer.get(range).map(Ok)
    }
}

/// Encodes a value as one line with its LF. The value contains a text of `text_length` bytes, which sizes the buffer.
///
/// # Errors
/// The value does not fit into a frame, or has no JSON form, which does not happen for types of this crate.
pub(crate) fn encode_frame(
    value: &impl Serialize,
    text_length: usize,
) -> Result<Vec<u8>, FrameError> {
    // With room for one escape per line.
    let mut frame = Vec::with_capacity(text_length + text_length / 16 + 256);
    serde_json::to_writer(&mut frame, value).map_err(|_| FrameError::TooLong)?;
    if frame.len() > MAX_FRAME {
        return Err(FrameError::TooLong);
    }
    frame.push(b'\n');
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames(stream: &[u8], cut: usize) -> Vec<Result<Vec<u8>, FrameError>> {
        let mut decoder = FrameDecoder::default();
        let mut frames = Vec::new();
        for bytes in stream.chunks(cut) {
            decoder.push(bytes);
            while let Some(frame) = decoder.next_frame() {
                frames.push(frame.map(<[u8]>::to_vec));
            }
            assert!(decoder.buffer.len() <= MAX_FRAME + 1 + cut);
        }
        frames
    }

    #[test]
    #[cfg_attr(miri, ignore = "megabytes take an interpreter minutes")]
    fn too_long_frame_is_skipped() {
        for over in [1, 2, MAX_FRAME] {
            let mut stream = vec![b'x'; MAX_FRAME + over];
            stream.extend_from_slice(b"\n{}\r\n\n");
            stream.extend(vec![b'y'; MAX_FRAME]);
            stream.push(b'\n');
            for cut in [stream.len(), 65_536, 1000] {
                let frames = frames(&stream, cut);
                assert_eq!(frames.len(), 3);
                assert_eq!(frames[0], Err(FrameError::TooLong));
                assert_eq!(frames[1], Ok(b"{}".to_vec()));
                assert_eq!(frames[2].as_ref().unwrap().len(), MAX_FRAME);
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "megabytes take an interpreter minutes")]
    fn endless_frame_is_an_error_in_bounded_memory() {
        let mut decoder = FrameDecoder::default();
        let is_error = (0..MAX_SKIPPED_BYTES / 65_536 + 32).any(|_| {
            decoder.push(&[b'x'; 65_536]);
            decoder.next_frame() == Some(Err(FrameError::Endless))
        });
        assert!(is_error);
    }

    #[test]
    #[cfg_attr(miri, ignore = "megabytes take an interpreter minutes")]
    fn too_long_value_is_not_encoded() {
        assert_eq!(
            encode_frame(&"x".repeat(MAX_FRAME), 0),
            Err(FrameError::TooLong)
        );
        assert_eq!(encode_frame(&"\n", 0).unwrap(), b"\"\\n\"\n");
    }

    proptest! {
        #[test]
        fn frames_do_not_depend_on_read_boundaries(stream in prop::collection::vec(
            prop_oneof![Just(b'\n'), Just(b'\r'), any::<u8>()], 0..200), cut in 1..40_usize) {
            prop_assert_eq!(frames(&stream, cut), frames(&stream, 1000));
        }
    }
}
