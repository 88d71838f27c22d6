//! Parsing of an agent's output into its view and transcript.

mod operations;

fn main() {
    operations::bench("glasspane", operations::glasspane::all());
}
