//! Appends to a journal, reads, and looks into its index.

mod operations;

fn main() {
    operations::bench("journal", operations::journal::all());
}
