//! What is done once for every byte, line, event, call or spawn: timed by the benches beside this directory, and its
//! allocations counted by tests/allocations.rs.

#![allow(clippy::unwrap_used, clippy::panic)]
#![allow(dead_code, reason = "each bench takes a part of it")]

pub(crate) mod codec;
pub(crate) mod glasspane;
pub(crate) mod jail_wrap;
pub(crate) mod journal;

use std::hint::black_box;

use criterion::{Criterion, Throughput};

/// Something that can be done again and again.
pub(crate) struct Operation {
    pub(crate) name: String,
    /// How many bytes it goes through, where its cost depends on that.
    bytes: Option<usize>,
    pub(crate) run: Box<dyn FnMut()>,
}

impl Operation {
    pub(crate) fn new<T>(name: impl Into<String>, mut run: impl FnMut() -> T + 'static) -> Self {
        Self {
            name: name.into(),
            bytes: None,
            run: Box::new(move || {
                black_box(run());
            }),
        }
    }

    pub(crate) fn over(mut self, bytes: usize) -> Self {
        self.bytes = Some(bytes);
        self
    }
}

/// Times all of them.
pub(crate) fn bench(group: &str, operations: Vec<Operation>) {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group(group);
    for Operation {
        name,
        bytes,
        mut run,
    } in operations
    {
        group.throughput(match bytes {
            Some(bytes) => Throughput::Bytes(bytes as u64),
            None => Throughput::Elements(1),
        });
        group.bench_function(name, |bencher| bencher.iter(&mut run));
    }
    group.finish();
    criterion.final_summary();
}
