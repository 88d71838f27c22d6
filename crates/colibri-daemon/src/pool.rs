//! Thread pool of fixed size for the daemon's blocking work.
//!
//! Tokio starts a thread for blocking work when none is idle, and panics if the system refuses to create one. The
//! daemon therefore checks at its start that the system grants all threads, starts them, and never ends them: a kill
//! works even while an agent uses up every process of its user.
//!
//! Semaphores limit the number of threads for long work, so that threads remain for short work.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;

/// Number of threads that run async tasks.
const ASYNC_THREADS: usize = 2;
/// Number of threads that run blocking work: two for parsing, one for long work, one for orphan cleanup and two for paths
/// in requests (both in the spawner), and two for short work.
const BLOCKING_THREADS: usize = 8;
/// Limits the number of slices that are parsed concurrently, over all agents. The semaphore is fair (FIFO): an agent with
/// much output does not starve the others.
pub(crate) static PARSE_SLOTS: Semaphore = Semaphore::const_new(2);
/// Limits the number of long operations that run concurrently, like the removal of a directory or a scan of all processes.
pub(crate) static LONG_WORK_SLOTS: Semaphore = Semaphore::const_new(1);
/// Timeout until all threads have started.
const THREAD_START_TIMEOUT: Duration = Duration::from_secs(10);
/// Keep-alive of idle threads: about 136 years, so that none ends.
const KEEP_ALIVE: Duration = Duration::from_secs(u32::MAX as u64);

/// Builds the daemon's runtime and starts all of its threads.
///
/// # Errors
/// The system refuses to create the threads.
pub(crate) fn runtime() -> io::Result<Runtime> {
    probe(ASYNC_THREADS + BLOCKING_THREADS)?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(ASYNC_THREADS)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(KEEP_ALIVE)
        .enable_all()
        .build()?;
    warm_up(&runtime)?;
    Ok(runtime)
}

/// Checks that the system grants `count` threads at the same time: starts and ends them. Without this check tokio would
/// panic.
fn probe(count: usize) -> io::Result<()> {
    let gate = Mutex::new(());
    std::thread::scope(|scope| {
        let _closed = gate.lock();
        (0..count).try_for_each(|_| {
            let thread = std::thread::Builder::new();
            thread.spawn_scoped(scope, || drop(gate.lock())).map(drop)
        })
    })
}

/// Makes the runtime start all threads for blocking work, by one task for each that waits until all of them run.
fn warm_up(runtime: &Runtime) -> io::Result<()> {
    let gate = Arc::new(Mutex::new(()));
    let _closed = gate.lock();
    let (started, starts) = channel();
    for _ in 0..BLOCKING_THREADS {
        let (gate, started) = (gate.clone(), started.clone());
        runtime.spawn_blocking(move || {
            let _ = started.send(());
            drop(gate.lock());
        });
    }
    (0..BLOCKING_THREADS)
        .try_for_each(|_| starts.recv_timeout(THREAD_START_TIMEOUT))
        .map_err(|error| io::Error::new(io::ErrorKind::WouldBlock, error))
}

/// Runs short work, like a read or a write of a small file.
pub(crate) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime is shutting down, which drops this task too.
        Err(_) => std::future::pending().await,
    }
}

/// Runs work when one of the slots is free: long work in [`LONG_WORK_SLOTS`], a slice of an agent's events, which the
/// caller bounds, in [`PARSE_SLOTS`].
pub(crate) async fn run_in<T: Send + 'static>(
    slots: &Semaphore,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    // Never closed.
    let _slot = slots.acquire().await;
    run(work).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocking_work_starts_no_thread() {
        let runtime = runtime().unwrap();
        let threads = || std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
        let before = threads();
        runtime.block_on(async {
            let work = (0..50).map(|_| tokio::spawn(run(|| std::thread::current().id())));
            for task in work.collect::<Vec<_>>() {
                task.await.unwrap();
            }
        });
        // Other tests in this process may start threads; nextest runs each test in its own process.
        assert!(threads() <= before + BLOCKING_THREADS);
    }
}
