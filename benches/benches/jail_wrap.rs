//! Conversion of a jail's configuration to a command line.

mod operations;

fn main() {
    operations::bench("jail_wrap", operations::jail_wrap::all());
}
