//! Runs a program of the host for a check, with a timeout and bounded output.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

/// Maximum number of bytes read from each output stream of a program.
const MAX_OUTPUT: u64 = 16 * 1024;
/// Minimum time for the output to arrive after the program's end.
const OUTPUT_GRACE: Duration = Duration::from_millis(100);
/// Maximum time until a killed program is reaped.
const REAP_TIMEOUT: Duration = Duration::from_secs(1);

/// The output of a program.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ProbeOutput {
    /// The exit status; absent if the program exceeded its time and was killed.
    pub status: Option<ExitStatus>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl ProbeOutput {
    /// Returns whether the program ended with exit code 0.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// Returns the cause of a failure in one line: standard error, or the exit status if it is empty.
    #[must_use]
    pub fn failure(&self) -> String {
        let stderr = self.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
        match (self.status, stderr.is_empty()) {
            (None, true) => "it did not end in time".to_owned(),
            (None, false) => format!("it did not end in time; {stderr}"),
            (Some(_), false) => stderr,
            (Some(status), true) => status.to_string(),
        }
    }
}

/// Runs a program with empty standard input and environment, and kills it after `limit`. Needs a tokio runtime.
///
/// # Errors
/// The program cannot be started.
pub async fn run(
    program: &Path,
    args: &[impl AsRef<OsStr>],
    limit: Duration,
) -> io::Result<ProbeOutput> {
    let mut child = Command::new(program)
        .args(args)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let deadline = Instant::now() + limit;
    let (stdout, stderr) = (read(child.stdout.take()), read(child.stderr.take()));
    let status = match timeout_at(deadline, child.wait()).await {
        Ok(status) => Some(status?),
        Err(_) => {
            // Fails if the program is setuid: then it is left behind, and the timeout is reported.
            let _ = child.start_kill();
            let _ = timeout(REAP_TIMEOUT, child.wait()).await;
            None
        }
    };
    Ok(ProbeOutput {
        status,
        stdout: text(stdout, deadline).await,
        stderr: text(stderr, deadline).await,
    })
}

fn read(stream: Option<impl AsyncRead + Unpin + Send + 'static>) -> JoinHandle<Vec<u8>> {
    tokio::spawn(async move {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            let _ = (&mut stream).take(MAX_OUTPUT).read_to_end(&mut bytes).await;
            // Without a reader, the program would get SIGPIPE.
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        }
        bytes
    })
}

/// Returns the output. A descendant may keep the pipe open forever, so output that does not end in time is dropped.
async fn text(mut reader: JoinHandle<Vec<u8>>, deadline: Instant) -> String {
    let deadline = deadline.max(Instant::now() + OUTPUT_GRACE);
    match timeout_at(deadline, &mut reader).await {
        Ok(bytes) => String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned(),
        Err(_) => {
            reader.abort();
            String::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sh(script: &str, limit: Duration) -> ProbeOutput {
        run(Path::new("/bin/sh"), &["-c", script], limit)
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn program_output_is_read_and_timeout_kills() {
        let long = Duration::from_secs(20);
        let output = sh("echo a; echo b >&2; exit 3", long).await;
        assert_eq!(
            (output.stdout.as_str(), output.failure().as_str()),
            ("a\n", "b")
        );
        assert!(!output.is_success() && sh(":", long).await.is_success());
        let hung = sh("exec sleep 1000", Duration::from_millis(50)).await;
        assert_eq!(hung.failure(), "it did not end in time");
        // A descendant that keeps the pipe open delays nothing.
        let orphan = sh("sleep 30 & exit 0", Duration::from_millis(200)).await;
        assert!(orphan.is_success());
        assert!(run(Path::new("/absent"), &["x"], long).await.is_err());
    }
}
