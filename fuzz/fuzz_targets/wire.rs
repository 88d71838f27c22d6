//! Arbitrary bytes on the wire: cut anywhere they give the same frames, no frame is too long, and every
//! request is understood or refused.

#![no_main]

use colibri_proto::{Call, FrameDecoder, FrameError, MAX_FRAME, Request};
use libfuzzer_sys::fuzz_target;

fn frames(pieces: impl Iterator<Item = Vec<u8>>) -> Vec<Result<Vec<u8>, FrameError>> {
    let mut decoder = FrameDecoder::default();
    let mut frames = Vec::new();
    for piece in pieces {
        decoder.push(&piece);
        while let Some(frame) = decoder.next_frame() {
            frames.push(frame.map(<[u8]>::to_vec));
        }
    }
    frames
}

fuzz_target!(|input: &[u8]| {
    let Some((cut, bytes)) = input.split_first() else {
        return;
    };
    let whole = frames(std::iter::once(bytes.to_vec()));
    let cut = usize::from(*cut).max(1);
    assert_eq!(whole, frames(bytes.chunks(cut).map(<[u8]>::to_vec)));
    for frame in whole.into_iter().flatten() {
        assert!(frame.len() <= MAX_FRAME && !frame.contains(&b'\n'));
        let Ok(call) = Request::parse(&frame).and_then(Request::call) else {
            continue;
        };
        // What was understood is understood again as the same call, unless writing it makes it too long.
        if let Ok(again) = call.encode(7) {
            let again = again.strip_suffix(b"\n").expect("a frame ends in LF");
            let parsed: Call = Request::parse(again)
                .and_then(Request::call)
                .expect("a frame of our own is understood");
            assert_eq!(call, parsed);
        }
    }
});
