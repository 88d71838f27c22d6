//! From an agent's output to its view and transcript.

mod operations;

fn main() {
    operations::bench("glasspane", operations::glasspane::all());
}
