//! From what an agent writes to what is shown of it.

mod operations;

fn main() {
    operations::bench("glasspane", operations::glasspane::all());
}
