//! Counts the allocations of hot paths and their peak. The counts are deterministic, so a new allocation changes the
//! snapshot. `INSTA_UPDATE=always cargo nextest run -p colibri-benches --test allocations` accepts the current
//! counts.

#[path = "../benches/operations/mod.rs"]
mod operations;

use std::fmt::Write as _;

use allocation_counter::measure;

#[test]
fn hot_path_allocations_match_the_snapshot() {
    let mut counted = String::new();
    for (group, operations) in [
        ("jail_wrap", operations::jail_wrap::all()),
        ("codec", operations::codec::all()),
        ("glasspane", operations::glasspane::all()),
        ("journal", operations::journal::all()),
    ] {
        for mut operation in operations {
            // The first run initializes caches that live forever.
            (operation.run)();
            let mut count = || {
                let counts = measure(&mut operation.run);
                // Names of temporary files have different lengths.
                let most = counts.bytes_max.div_ceil(1024);
                (counts.count_total, most)
            };
            let (allocations, most) = count();
            assert_eq!(count(), (allocations, most), "{}", operation.name);
            let _ = writeln!(
                counted,
                "{group}: {:<42} {allocations:>5} allocations, at most {most:>4} KiB",
                operation.name
            );
        }
    }
    insta::assert_snapshot!(counted);
}
