//! From a checked confinement to the command that confines.

mod operations;

fn main() {
    operations::bench("jail_wrap", operations::jail_wrap::all());
}
