//! Appends to a journal, reads, and index lookups.

mod operations;

fn main() {
    operations::bench("journal", operations::journal::all());
}
