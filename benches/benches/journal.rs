//! Appends to a journal, reads of it, and lookups in its index.

mod operations;

fn main() {
    operations::bench("journal", operations::journal::all());
}
