//! Frames: one JSON object a line, at most 1 MiB. Whatever bytes come, memory stays bounded.

use memchr::memchr;
use serde::Serialize;

/// Longest frame in either direction, in bytes, without its LF.
pub const MAX_FRAME: usize = 1 << 20;
/// Of a frame that is too long so much is skipped in search of its end; then the stream counts as lost.
const MAX_SKIP: usize = 16 << 20;

/// Why there is no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Skipped to its end; the next frame can be read.
    #[error("frame is longer than {MAX_FRAME} bytes; send smaller ones")]
    TooLong,
    /// No end of it is in sight; close the connection.
    #[error("frame is longer than {MAX_SKIP} bytes and has no end; the connection is closed")]
    Endless,
}

/// Cuts bytes into frames.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: Vec<u8>,
    /// Bytes at the front that were given out.
    taken: usize,
    /// Bytes at the front that hold no LF, but for those that were given out.
    searched: usize,
    /// Bytes already dropped of a frame that is too long.
    skipped: usize,
}

impl FrameDecoder {
    /// Takes bytes in. Call [`FrameDecoder::next_frame`] until it has none before the next push, so that
    /// no more than a frame and one push are held.
    pub fn push(&mut self, bytes: &[u8]) {
        // Once for all frames of the push before.
        self.buffer.drain(..self.taken);
        self.searched -= self.taken;
        self.taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, without its line end; `None` where more bytes are needed. Empty lines are
    /// no frames.
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
                    if self.skipped > MAX_SKIP {
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

/// One line with its LF.
///
/// # Errors
/// The value does not fit into a frame (or cannot be JSON at all, which no type of this crate does).
pub fn encode_frame<T: Serialize>(value: &T) -> Result<Vec<u8>, FrameError> {
    encode_around(value, 0)
}

/// As [`encode_frame`], of a value of which a text of `length` bytes is the most: the frame need not grow to that.
pub(crate) fn encode_around<T: Serialize>(value: &T, length: usize) -> Result<Vec<u8>, FrameError> {
    // Lines have an escape each.
    let mut frame = Vec::with_capacity(length + length / 16 + 256);
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
        for piece in stream.chunks(cut) {
            decoder.push(piece);
            while let Some(frame) = decoder.next_frame() {
                frames.push(frame.map(<[u8]>::to_vec));
            }
            assert!(decoder.buffer.len() <= MAX_FRAME + 1 + cut);
        }
        frames
    }

    #[test]
    #[cfg_attr(miri, ignore = "megabytes take an interpreter minutes")]
    fn a_frame_that_is_too_long_is_skipped_and_the_next_one_read() {
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
    fn an_endless_frame_gives_up_in_bounded_memory() {
        let mut decoder = FrameDecoder::default();
        let given_up = (0..MAX_SKIP / 65_536 + 32).any(|_| {
            decoder.push(&[b'x'; 65_536]);
            decoder.next_frame() == Some(Err(FrameError::Endless))
        });
        assert!(given_up);
    }

    #[test]
    #[cfg_attr(miri, ignore = "megabytes take an interpreter minutes")]
    fn nothing_longer_than_a_frame_is_sent() {
        assert_eq!(
            encode_frame(&"x".repeat(MAX_FRAME)),
            Err(FrameError::TooLong)
        );
        assert_eq!(encode_frame(&"\n").unwrap(), b"\"\\n\"\n");
    }

    proptest! {
        #[test]
        fn how_bytes_are_cut_changes_nothing(stream in prop::collection::vec(
            prop_oneof![Just(b'\n'), Just(b'\r'), any::<u8>()], 0..200), cut in 1..40_usize) {
            prop_assert_eq!(frames(&stream, cut), frames(&stream, 1000));
        }
    }
}
