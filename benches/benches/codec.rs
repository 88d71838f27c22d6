//! Frames out and in.

mod operations;

fn main() {
    operations::bench("codec", operations::codec::all());
}
