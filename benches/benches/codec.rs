//! Encoding and decoding of frames.

mod operations;

fn main() {
    operations::bench("codec", operations::codec::all());
}
