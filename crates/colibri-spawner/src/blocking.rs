//! Blocking file operations on threads of the runtime's blocking pool.

use std::time::Duration;

use tokio::sync::Semaphore;

use crate::SpawnError;

/// Maximum number of concurrent accesses to paths of requests. An access to a file system that does not respond keeps its
/// permit and its thread; the limit protects the other threads of the pool.
static USER_PATHS: Semaphore = Semaphore::const_new(2);
/// Timeout of an access to paths of a request, including the wait for a permit.
const USER_PATHS_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs work on paths of a request with a timeout.
///
/// # Errors
/// A file system did not respond in time.
pub(crate) async fn on_user_paths<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, SpawnError> {
    let accessed = async {
        // Fails only for a closed semaphore; this one is never closed.
        let permit = USER_PATHS.acquire().await;
        blocking(move || {
            let outcome = work();
            drop(permit);
            outcome
        })
        .await
    };
    match tokio::time::timeout(USER_PATHS_TIMEOUT, accessed).await {
        Ok(outcome) => outcome,
        Err(_) => Err(SpawnError::Resources {
            doing: "checking the paths of the request".to_owned(),
            source: std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                format!("a file system did not respond within {USER_PATHS_TIMEOUT:?}"),
            ),
        }),
    }
}

/// Runs blocking file operations on the blocking pool of the runtime.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, SpawnError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| SpawnError::Resources {
            doing: "working on files".to_owned(),
            source: std::io::Error::other(error),
        })
}
