//! Counts the allocations of hot paths, and the peak of allocated bytes. The counts are deterministic, so a new
//! allocation changes the snapshot. `INSTA_UPDATE=always cargo nextest run -p colibri-benches --test allocations` accepts the current
//! counts.

#[path = "../benches/operations/mod.rs"]
mod operations;

use std::fmt::Write as _;

use allocation_counter::measure;

#[test]
fn hot_path_allocations_match_the_snapshot() {
    let mut table = String::new();
    for (group, operations) in [
        ("jail_wrap", operations::jail_wrap::all()),
        ("codec", operations::codec::all()),
        ("glasspane", operations::glasspane::all()),
        ("journal", operations::journal::all()),
    ] {
        for mut operation in operations {
            // The first run initializes caches that are never freed.
            (operation.run)();
            let mut count = || {
                let counts = measure(&mut operation.run);
                // Rounded up, because names of temporary files have different lengths.
                let peak_kib = counts.bytes_max.div_ceil(1024);
                (counts.count_total, peak_kib)
            };
            let (allocations, peak_kib) = count();
            assert_eq!(count(), (allocations, peak_kib), "{}", operation.name);
            let _ = writeln!(
                table,
                "{group}: {:<42} {allocations:>5} allocations, at most {peak_kib:>4} KiB",
                operation.name
            );
        }
    }
    insta::assert_snapshot!(table);
}
