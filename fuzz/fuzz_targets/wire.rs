//! Decodes arbitrary bytes as frames and requests. Frames must not depend on chunk boundaries or exceed the maximum
//! length. Every accepted request must be equal after encoding and decoding.

#![no_main]

use colibri_proto::{Call, FrameDecoder, FrameError, MAX_FRAME, Request};
use libfuzzer_sys::fuzz_target;

fn decode_frames(chunks: impl Iterator<Item = Vec<u8>>) -> Vec<Result<Vec<u8>, FrameError>> {
    let mut decoder = FrameDecoder::default();
    let mut frames = Vec::new();
    for chunk in chunks {
        decoder.push(&chunk);
        while let Some(frame) = decoder.next_frame() {
            frames.push(frame.map(<[u8]>::to_vec));
        }
    }
    frames
}

fuzz_target!(|input: &[u8]| {
    let Some((first, bytes)) = input.split_first() else {
        return;
    };
    let whole = decode_frames(std::iter::once(bytes.to_vec()));
    let chunk_size = usize::from(*first).max(1);
    assert_eq!(
        whole,
        decode_frames(bytes.chunks(chunk_size).map(<[u8]>::to_vec))
    );
    for frame in whole.into_iter().flatten() {
        assert!(frame.len() <= MAX_FRAME && !frame.contains(&b'\n'));
        let Some(Ok(call)) = Request::read(&frame).ok().map(Request::call) else {
            continue;
        };
        // The encoded call may exceed the maximum length.
        if let Ok(encoded) = call.encode(7) {
            let encoded = encoded.strip_suffix(b"\n").expect("a frame without LF");
            let request = Request::read(encoded).expect("cannot parse an encoded request");
            let parsed: Call = request.call().expect("cannot parse an encoded call");
            assert_eq!(call, parsed);
        }
    }
});
