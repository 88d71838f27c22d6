//! Blocking work of the daemon, on a fixed number of threads that are started before anything else.
//!
//! Tokio starts a thread for blocking work when none is idle, and panics where the system refuses. The daemon
//! therefore starts all of them at once, checks first that the system has enough, and keeps them: a kill works
//! while an agent uses up every process that its user may have.
//!
//! Work that takes long has a number of slots of its own, so that a thread is always left for short work.

use std::io;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;

/// Threads that run async tasks.
const WORKERS: usize = 2;
/// Threads that run blocking work: those of both long kinds below, and one more.
const THREADS: usize = 4;
/// Slices of agents' events that are parsed at the same time, of all agents together. The queue is first in, first
/// out, so that each agent gets its turn however much another one writes.
static PARSING: Semaphore = Semaphore::const_new(2);
/// Long work at a time: a removal of a directory, a look at all processes of the host.
static LONG: Semaphore = Semaphore::const_new(1);
/// How long the system may take to run the threads that it has granted.
const STARTED: Duration = Duration::from_secs(10);
/// The threads never end for want of work: about 136 years.
const KEPT: Duration = Duration::from_secs(u32::MAX as u64);

/// Keeps threads waiting until it is opened.
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

/// Starts the daemon's runtime with all threads that it will ever have.
///
/// # Errors
/// The system does not grant the threads.
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

/// Starts so many threads at the same time and ends them: tokio would panic where the system refuses one.
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

/// Has the runtime start all its threads for blocking work: none is idle before all of them run.
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

/// Runs work that takes a moment: a read or a write of a small file.
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

/// Runs work that may take long, one piece of it at a time.
///
/// # Errors
/// The daemon is shutting down.
pub(crate) async fn long<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let _slot = LONG.acquire().await.map_err(io::Error::other)?;
    short(work).await
}

/// Parses a slice of an agent's events. Whoever calls it bounds the slice.
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
        // Other tests of this process may start threads of their own; with nextest there are none.
        assert!(threads() <= before + THREADS);
    }
}
