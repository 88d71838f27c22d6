//! Thread pool of fixed size for blocking work of the daemon, started before anything else.
//!
//! Tokio starts a thread for blocking work when none is idle, and panics if the system refuses to create one. The
//! daemon therefore probes that the system grants all threads, starts them at its own start, and keeps them: a kill
//! works even while an agent uses up every process of its user.
//!
//! Semaphores bound the number of threads that long work may occupy, so that one thread is left for short work.

use std::io;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;

/// Number of threads that run async tasks.
const WORKERS: usize = 2;
/// Threads that run blocking work: two that parse, one for long work, one for leftovers and two for paths that users
/// name (both in the spawner), and two for short work.
const THREADS: usize = 8;
/// Limits how many slices of events are parsed at the same time, over all agents. The semaphore is fair (FIFO), so that
/// an agent that floods does not starve the others.
static PARSING: Semaphore = Semaphore::const_new(2);
/// Limits how many long operations run at the same time, like the removal of a directory or a scan of all processes.
static LONG: Semaphore = Semaphore::const_new(1);
/// Timeout until all granted threads run.
const STARTED: Duration = Duration::from_secs(10);
/// Keep-alive of idle threads: about 136 years, so that none ends.
const KEPT: Duration = Duration::from_secs(u32::MAX as u64);

/// Blocks threads until it is opened.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        while !*open {
            open = self
                .opened
                .wait(open)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn open(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.opened.notify_all();
    }
}

/// Builds the daemon's runtime and starts all of its threads.
///
/// # Errors
/// The system refuses to create the threads.
pub(crate) fn runtime() -> io::Result<Runtime> {
    probe(WORKERS + THREADS)?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(THREADS)
        .thread_keep_alive(KEPT)
        .enable_all()
        .build()?;
    warm_up(&runtime)?;
    Ok(runtime)
}

/// Checks that the system grants `count` threads at the same time: starts and ends them. Without the check tokio would
/// panic.
fn probe(count: usize) -> io::Result<()> {
    let gate = Arc::new(Gate::default());
    let mut threads = Vec::with_capacity(count);
    let mut outcome = Ok(());
    for _ in 0..count {
        let waits = gate.clone();
        match std::thread::Builder::new().spawn(move || waits.pass()) {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                outcome = Err(error);
                break;
            }
        }
    }
    gate.open();
    for thread in threads {
        let _ = thread.join();
    }
    outcome
}

/// Makes the runtime start all threads for blocking work: each task waits until all of them run.
fn warm_up(runtime: &Runtime) -> io::Result<()> {
    let gate = Arc::new(Gate::default());
    let (started, starts) = channel();
    for _ in 0..THREADS {
        let (waits, started) = (gate.clone(), started.clone());
        runtime.spawn_blocking(move || {
            let _ = started.send(());
            waits.pass();
        });
    }
    drop(started);
    let all = (0..THREADS).try_for_each(|_| starts.recv_timeout(STARTED));
    gate.open();
    all.map_err(|error: RecvTimeoutError| {
        io::Error::new(io::ErrorKind::WouldBlock, error.to_string())
    })
}

/// Runs short work, like a read or a write of a small file.
///
/// # Errors
/// The daemon is shutting down.
pub(crate) async fn short<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)
}

/// Runs long work; only one runs at a time.
///
/// # Errors
/// The daemon is shutting down.
pub(crate) async fn long<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let _slot = LONG.acquire().await.map_err(io::Error::other)?;
    short(work).await
}

/// Parses a slice of an agent's events. The caller bounds the slice.
///
/// # Errors
/// The daemon is shutting down.
pub(crate) async fn parse<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let _slot = PARSING.acquire().await.map_err(io::Error::other)?;
    short(work).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocking_work_never_starts_a_thread() {
        let runtime = runtime().unwrap();
        let threads = || std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
        let before = threads();
        runtime.block_on(async {
            let work = (0..50).map(|_| tokio::spawn(short(|| std::thread::current().id())));
            for task in work.collect::<Vec<_>>() {
                task.await.unwrap().unwrap();
            }
        });
        // Other tests in this process may start threads; nextest runs each test in its own process.
        assert!(threads() <= before + THREADS);
    }
}
