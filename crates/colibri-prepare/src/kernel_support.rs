//! Checks whether the kernel of this host supports a feature that an engine needs, such as rctl(8) or VIMAGE.

use std::io::{self, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use colibri_jail_core::KernelSupport;

use crate::Obstacle;

/// Timeout of the program that prints the setting of the kernel.
const SUPPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval at which the end of that program is checked; it takes about a millisecond.
const SUPPORT_INTERVAL: Duration = Duration::from_millis(2);
/// Maximum number of bytes read from each of its outputs.
const MAX_SUPPORT_OUTPUT: u64 = 4096;

/// Returns why the kernel lacks `support`; `None` if it has it. Blocks until a program has ended.
pub(crate) fn support_obstacle(support: &KernelSupport) -> Option<Obstacle> {
    let command = || format!("{} {}", support.program, support.args.join(" "));
    let cause = match run(support, SUPPORT_TIMEOUT) {
        Err(error) => format!("{} cannot be run: {error}", command()),
        Ok(SupportOutput { stdout, .. }) if stdout == support.expected => return None,
        Ok(SupportOutput { status, stdout, .. }) if status.success() => {
            format!("{} prints {stdout}", command())
        }
        Ok(SupportOutput { status, stderr, .. }) => match stderr.is_empty() {
            true => format!("{} failed: {status}", command()),
            false => format!("{} failed: {stderr}", command()),
        },
    };
    Some(Obstacle {
        cause,
        hint: support.hint.to_owned(),
    })
}

/// The result of a program that prints a setting.
struct SupportOutput {
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

fn run(support: &KernelSupport, limit: Duration) -> io::Result<SupportOutput> {
    let mut child = Command::new(support.program)
        .args(support.args)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let status = match wait(&mut child, limit) {
        Ok(status) => status,
        Err(error) => {
            // The error of the wait is reported; without these two, the program would remain.
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
    };
    Ok(SupportOutput {
        status,
        stdout: text(child.stdout.take())?,
        stderr: text(child.stderr.take())?,
    })
}

/// Waits until the program has ended.
fn wait(child: &mut Child, limit: Duration) -> io::Result<ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        match child.try_wait()? {
            Some(status) => return Ok(status),
            None if Instant::now() < deadline => thread::sleep(SUPPORT_INTERVAL),
            None => {
                let problem = format!("it did not end within {limit:?}");
                return Err(io::Error::new(io::ErrorKind::TimedOut, problem));
            }
        }
    }
}

/// Returns the output of an ended program, in one line.
fn text(stream: Option<impl Read>) -> io::Result<String> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.take(MAX_SUPPORT_OUTPUT).read_to_end(&mut bytes)?;
    }
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn support_program_that_hangs_is_killed() {
        let support = |script| KernelSupport {
            name: "rctl(8)",
            program: "/bin/sh",
            args: script,
            expected: "1",
            hint: "enable racct",
        };
        let hanging = support(&["-c", "exec sleep 1000"]);
        let error = run(&hanging, Duration::from_millis(20)).err().unwrap();
        assert_eq!(error.to_string(), "it did not end within 20ms");
        let absent = KernelSupport {
            program: "/absent/sysctl",
            ..support(&["-c", "echo 1"])
        };
        let obstacle = support_obstacle(&absent).unwrap();
        assert_eq!(
            obstacle.cause,
            "/absent/sysctl -c echo 1 cannot be run: No such file or directory (os error 2)"
        );
    }
}
