//! Operations that run once per byte, line, event, call or spawn. The benches measure their CPU time, and
//! tests/allocations.rs counts their allocations.

#![allow(clippy::unwrap_used, clippy::panic)]
#![allow(dead_code, reason = "each bench uses a part of this module")]

pub(crate) mod codec;
pub(crate) mod glasspane;
pub(crate) mod jail_wrap;
pub(crate) mod journal;

use std::hint::black_box;
use std::time::Duration;

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{Criterion, Throughput};
use rustix::time::{ClockId, clock_gettime};

/// A repeatable operation.
pub(crate) struct Operation {
    pub(crate) name: String,
    /// Number of processed bytes, if the cost depends on it.
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

    /// Sets the number of processed bytes.
    pub(crate) fn with_bytes(mut self, bytes: usize) -> Self {
        self.bytes = Some(bytes);
        self
    }
}

/// The CPU time of the thread, on which other load of the machine has little effect.
struct CpuTime;

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        Duration::try_from(now).unwrap()
    }

    fn end(&self, started: Duration) -> Duration {
        self.start().saturating_sub(started)
    }

    fn add(&self, one: &Duration, other: &Duration) -> Duration {
        *one + *other
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_nanos() as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

/// Measures all operations.
pub(crate) fn bench(group: &str, operations: Vec<Operation>) {
    let mut criterion = Criterion::default()
        .with_measurement(CpuTime)
        .configure_from_args();
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
