//! Runs a program of the host for a check, with a timeout and bounded output.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Maximum number of bytes read from each output stream of a program.
const MAX_OUTPUT: u64 = 16 * 1024;
/// Time for the output to arrive after the program's end.
const OUTPUT_GRACE: Duration = Duration::from_millis(100);
/// Maximum time until a killed program is reaped.
const REAP_TIMEOUT: Duration = Duration::from_secs(1);

/// The output of a program.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ProbeOutput {
    /// The exit status; absent if the program exceeded its time.
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
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (mut stdout_bytes, mut stderr_bytes) = (Vec::new(), Vec::new());
    let status = {
        let mut ended = pin!(wait_or_kill(&mut child, limit));
        let mut output_read = pin!(async {
            tokio::join!(
                read_output(stdout, &mut stdout_bytes),
                read_output(stderr, &mut stderr_bytes)
            )
        });
        tokio::select! {
            status = &mut ended => {
                // A descendant may keep the pipes open forever.
                let _ = timeout(OUTPUT_GRACE, output_read).await;
                status
            }
            _ = &mut output_read => ended.await,
        }
    };
    Ok(ProbeOutput {
        status: status?,
        stdout: String::from_utf8_lossy(&stdout_bytes).into_owned(),
        stderr: String::from_utf8_lossy(&stderr_bytes).into_owned(),
    })
}

/// Returns the exit status; `None` if the program exceeded the limit. It is then killed, if this user may do that.
async fn wait_or_kill(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    if let Ok(status) = timeout(limit, child.wait()).await {
        return status.map(Some);
    }
    // Fails if the program has changed its real uid (kill(2)). It then keeps running, and the timeout is reported.
    let _ = child.start_kill();
    let _ = timeout(REAP_TIMEOUT, child.wait()).await;
    Ok(None)
}

/// Appends up to [`MAX_OUTPUT`] bytes to `bytes`, and discards the rest of the output.
async fn read_output(stream: Option<impl AsyncRead + Unpin>, bytes: &mut Vec<u8>) {
    let Some(mut stream) = stream else { return };
    let _ = (&mut stream).take(MAX_OUTPUT).read_to_end(bytes).await;
    // Without a reader, the program would get SIGPIPE.
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Pid, Signal, kill_process};

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
        assert!(run(Path::new("/absent"), &["x"], long).await.is_err());
    }

    #[tokio::test]
    async fn descendant_with_open_output_delays_no_result() {
        let limit = Duration::from_secs(3600);
        let run = sh("echo a; sleep 60 & echo $! >&2; exit 0", limit);
        let output = timeout(Duration::from_secs(50), run).await.unwrap();
        let descendant = Pid::from_raw(output.stderr.trim().parse().unwrap()).unwrap();
        kill_process(descendant, Signal::KILL).unwrap();
        assert!(output.is_success());
        assert_eq!(output.stdout, "a\n");
    }
}
