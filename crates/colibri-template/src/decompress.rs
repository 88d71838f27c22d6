//! Decompression by content: gzip, zstd, xz, or none.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use lzma_rust2::XzReader;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

/// Maximum memory of the xz decoder, in KiB. `xz -9` needs 65 MiB.
const XZ_MEMORY_KIB: u32 = 256 * 1024;
/// Maximum window of the zstd decoder, in bytes: that of `zstd --ultra`.
const ZSTD_WINDOW: u64 = 128 << 20;
/// Size of the read buffer before the decoder, in bytes.
const BUFFER: usize = 64 * 1024;

/// Returns a reader of the decompressed content. The first bytes select the format.
pub(crate) fn decompress<'a>(input: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut input = BufReader::with_capacity(BUFFER, input);
    // A file or pipe delivers at least six bytes at once, unless it is shorter.
    let start = input.fill_buf()?;
    Ok(match start {
        [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(input)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            Box::new(ZstdReader::Between(Some(input)))
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            Box::new(XzReader::new_mem_limit(input, true, XZ_MEMORY_KIB))
        }
        _ => Box::new(input),
    })
}

/// A decoder of consecutive zstd frames. Frames with other content (skippable frames, RFC 8878 section 3.1.2) are skipped.
enum ZstdReader<R: Read> {
    /// The input after a frame; `None` after an error.
    Between(Option<R>),
    Frame(Box<StreamingDecoder<R, FrameDecoder>>),
}

impl<R: BufRead> Read for ZstdReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match self {
                Self::Frame(decoder) => {
                    let count = decoder.read(buffer)?;
                    if count > 0 {
                        return Ok(count);
                    }
                    let Self::Frame(decoder) = std::mem::replace(self, Self::Between(None)) else {
                        continue;
                    };
                    *self = Self::Between(Some(decoder.into_inner()));
                }
                Self::Between(input) => {
                    let Some(mut reader) = input.take() else {
                        return Err(io::Error::other("the zstd decoder failed before"));
                    };
                    if reader.fill_buf()?.is_empty() {
                        *input = Some(reader);
                        return Ok(0);
                    }
                    if let Some(length) = skippable_frame(&mut reader)? {
                        let skipped = io::copy(&mut (&mut reader).take(length), &mut io::sink())?;
                        if skipped < length {
                            return Err(io::ErrorKind::UnexpectedEof.into());
                        }
                        *input = Some(reader);
                        continue;
                    }
                    let decoder = StreamingDecoder::new_with_max_window_size(reader, ZSTD_WINDOW)
                        .map_err(io::Error::other)?;
                    *self = Self::Frame(Box::new(decoder));
                }
            }
        }
    }
}

/// Reads the header of a skippable frame, and returns the length of its content; `None` and reads nothing if the input
/// begins differently.
fn skippable_frame(reader: &mut impl BufRead) -> io::Result<Option<u64>> {
    if !matches!(reader.fill_buf()?, [0x50..=0x5f, ..]) {
        return Ok(None);
    }
    let mut header = [0; 8];
    reader.read_exact(&mut header)?;
    let [_, magic @ .., a, b, c, d] = header;
    match magic == [0x2a, 0x4d, 0x18] {
        true => Ok(Some(u64::from(u32::from_le_bytes([a, b, c, d])))),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it contains bytes that are not a zstd frame",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn decoded(input: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decompress(input)?.read_to_end(&mut out)?;
        Ok(out)
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut writer =
            lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::default()).unwrap();
        writer.write_all(bytes).unwrap();
        writer.finish().unwrap()
    }

    #[test]
    fn every_format_is_found_by_its_content() {
        let text = b"colibri ".repeat(20_000);
        let gzip = |bytes: &[u8]| {
            let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            writer.write_all(bytes).unwrap();
            writer.finish().unwrap()
        };
        let (first, second) = text.split_at(77_777);
        let skippable = b"\x53\x2a\x4d\x18\x03\0\0\0abc".to_vec();
        for (name, input) in [
            ("none", text.clone()),
            ("gzip", gzip(&text)),
            ("two gzip members", [gzip(first), gzip(second)].concat()),
            ("zstd", zstd(&text)),
            (
                "zstd frames",
                [skippable.clone(), zstd(first), skippable, zstd(second)].concat(),
            ),
            ("xz", xz(&text)),
            ("two xz streams", [xz(first), xz(second)].concat()),
        ] {
            assert!(decoded(&input).unwrap() == text, "{name}");
        }
        assert_eq!(decoded(b"").unwrap(), b"");
    }

    #[test]
    fn truncated_input_is_an_error() {
        let text = b"colibri ".repeat(1000);
        for whole in [zstd(&text), xz(&text)] {
            for end in [5, 7, whole.len() / 2, whole.len() - 1] {
                let result = decoded(&whole[..end]);
                assert!(result.is_err() || result.unwrap() != text, "{end}");
            }
        }
        let mut trailing = zstd(&text);
        trailing.extend(b"Pgarbage");
        assert!(decoded(&trailing).is_err());
    }
}
