//! Download of an archive by fetch(1) of FreeBSD, or by curl(1).

use std::fmt::Display;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::command::{ExternalCommand, RunningProgram};
use crate::digest::{Digest, HashingReader};
use crate::error::TemplateError;
use crate::init::InitProgress;
use crate::input::{BoundedReader, ByteBudget, Cancellation, stop_error};

/// Maximum time without a byte.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// Maximum time of a download.
const TIMEOUT: Duration = Duration::from_secs(6 * 60 * 60);
/// Time between two checks for cancellation while no byte arrives.
const CHECK_INTERVAL: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};

/// Validates the URL of an archive.
///
/// # Errors
/// The URL is not one of https, or contains characters that a URL cannot contain.
pub(crate) fn check_url(url: &str) -> Result<(), String> {
    let host = url
        .strip_prefix("https://")
        .ok_or("only https URLs are supported; give one, or a file")?;
    let is_valid = url
        .chars()
        .all(|c| c.is_ascii_graphic() && !"\"'\\`<>{}|^[]".contains(c));
    match is_valid && !host.is_empty() && !host.starts_with(['/', '-']) {
        true => Ok(()),
        false => Err("it is not a URL; give one like https://HOST/PATH".to_owned()),
    }
}

/// Returns the command that writes the content of a URL to its standard output.
fn command(url: &str, program: &str) -> ExternalCommand {
    match program.ends_with("/fetch") {
        true => ExternalCommand::new(program, &["-q", "-T", "60", "-o", "-", url]),
        // Redirections stay within https. --globoff: brackets have no meaning.
        false => ExternalCommand::new(
            program,
            &[
                "--silent",
                "--show-error",
                "--fail",
                "--location",
                "--proto",
                "=https",
                "--globoff",
                "--connect-timeout",
                "60",
                "--",
                url,
            ],
        ),
    }
}

/// Returns the program for downloads: fetch(1) is part of FreeBSD.
fn find_program() -> &'static str {
    let programs = ["/usr/bin/fetch", "/usr/bin/curl", "/usr/local/bin/curl"];
    let candidates = match cfg!(target_os = "freebsd") {
        true => &programs[..],
        false => &programs[1..],
    };
    let found = candidates.iter().find(|path| Path::new(path).exists());
    found.unwrap_or(&candidates[0])
}

/// Downloads a URL into a file, and returns the digest of its content.
pub(crate) fn download(
    url: &str,
    to: &mut File,
    max_bytes: u64,
    cancellation: &Cancellation,
    progress: &dyn Fn(InitProgress<'_>),
) -> Result<Digest, TemplateError> {
    let download = Download {
        url,
        command: command(url, find_program()),
        idle_timeout: IDLE_TIMEOUT,
        max_bytes,
        cancellation,
        progress,
    };
    download.run(to)
}

/// A download by an external program.
struct Download<'a> {
    url: &'a str,
    /// The command that writes the content to its standard output.
    command: ExternalCommand,
    /// Maximum time without a byte, and between the last byte and the end of the program.
    idle_timeout: Duration,
    max_bytes: u64,
    cancellation: &'a Cancellation,
    progress: &'a dyn Fn(InitProgress<'_>),
}

impl Download<'_> {
    fn run(&self, to: &mut File) -> Result<Digest, TemplateError> {
        let deadline = Instant::now() + TIMEOUT;
        // The environment may name a proxy or certificates.
        let mut command = self.command.command();
        let mut program = RunningProgram::start(&self.command, command.stdout(Stdio::piped()))
            .map_err(|error| {
                self.failed(&format!(
                    "{error}; install curl, or download the file and give its path"
                ))
            })?;
        let digest = self.copy(&mut program, to, deadline)?;
        let deadline = deadline.min(Instant::now() + self.idle_timeout);
        let Some(status) = program.wait(deadline, self.cancellation)? else {
            return Err(self.failed(&format!(
                "it did not end within {:?} of its last output; download the file and give its path",
                self.idle_timeout
            )));
        };
        if status.success() {
            return Ok(digest);
        }
        let messages = program.messages();
        let cause = match messages.is_empty() {
            true => status.to_string(),
            false => messages,
        };
        Err(TemplateError::Source {
            archive: self.url.to_owned(),
            problem: format!("{cause}; check the URL and the network"),
        })
    }

    /// Copies the program's output into a file.
    fn copy(
        &self,
        program: &mut RunningProgram<'_>,
        to: &mut File,
        deadline: Instant,
    ) -> Result<Digest, TemplateError> {
        let unreadable =
            |error: &dyn Display| self.failed(&format!("{error}; report this as a bug"));
        let stdout = program.take_stdout();
        let stdout = stdout.ok_or_else(|| unreadable(&"it has no standard output"))?;
        let descriptor = stdout.as_fd().try_clone_to_owned();
        let descriptor = descriptor.map_err(|error| {
            self.failed(&format!("{error}; close descriptors, or raise ulimit -n"))
        })?;
        let budget = ByteBudget::new(self.max_bytes);
        let bounded = BoundedReader::new(stdout, &budget, self.cancellation);
        let mut input = HashingReader::new(bounded);
        let mut buffer = vec![0; 64 * 1024];
        let mut last_byte = Instant::now();
        let mut bytes = 0;
        loop {
            self.cancellation.check()?;
            program.read_messages();
            if last_byte.elapsed() > self.idle_timeout || Instant::now() > deadline {
                return Err(
                    self.failed("the download is too slow; download the file and give its path")
                );
            }
            let mut polled = [PollFd::new(&descriptor, PollFlags::IN)];
            if !matches!(poll(&mut polled, Some(&CHECK_INTERVAL)), Ok(1..)) {
                continue;
            }
            let count = match input.read(&mut buffer) {
                Ok(0) => return Ok(input.finish()),
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(stop_error(&error).unwrap_or_else(|| unreadable(&error)));
                }
            };
            to.write_all(&buffer[..count])
                .map_err(TemplateError::file("write", "the downloaded archive"))?;
            last_byte = Instant::now();
            bytes += count as u64;
            (self.progress)(InitProgress::Downloaded { bytes });
        }
    }

    fn failed(&self, problem: &str) -> TemplateError {
        self.command.failed(problem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn download_commands_match_snapshot() {
        let url = "https://download.example/releases/base.txz";
        let commands =
            ["/usr/bin/fetch", "/usr/bin/curl"].map(|program| command(url, program).to_string());
        insta::assert_snapshot!(commands.join("\n"), @"
        /usr/bin/fetch -q -T 60 -o - https://download.example/releases/base.txz
        /usr/bin/curl --silent --show-error --fail --location --proto =https --globoff --connect-timeout 60 -- https://download.example/releases/base.txz
        ");
    }

    /// Runs a shell script as the program that downloads, and cancels after the first byte if requested.
    fn run(script: &str, idle_timeout: Duration, cancels: bool) -> Result<Digest, TemplateError> {
        let cancellation = Cancellation::default();
        let progress = |_: InitProgress<'_>| {
            if cancels {
                cancellation.cancel();
            }
        };
        let download = Download {
            url: "https://download.example/base.txz",
            command: ExternalCommand::new("/bin/sh", &["-c", script]),
            idle_timeout,
            max_bytes: 1000,
            cancellation: &cancellation,
            progress: &progress,
        };
        let begin = Instant::now();
        let result = download.run(&mut tempfile::tempfile().unwrap());
        assert!(begin.elapsed() < Duration::from_secs(7), "{script}");
        result
    }

    #[test]
    fn download_that_does_not_end_is_killed() {
        let short = Duration::from_millis(300);
        let late = |script, cancels| run(script, short, cancels).unwrap_err().to_string();
        let text = late("printf abc; exec >&-; exec sleep 30", false);
        assert!(text.contains("it did not end within 300ms"), "{text}");
        let text = late("printf abc; exec sleep 30", false);
        assert!(text.contains("the download is too slow"), "{text}");
        let text = late("printf abc; exec >&-; exec sleep 30", true);
        assert!(text.contains("cancelled"), "{text}");
    }

    #[test]
    fn download_error_contains_the_messages() {
        let long = Duration::from_secs(60);
        let failed = |script| run(script, long, false).unwrap_err().to_string();
        // A descendant that keeps standard error open is not waited for.
        assert_eq!(
            failed("sleep 8 >&- & echo no such host >&2; exit 6"),
            "cannot read https://download.example/base.txz: no such host; check the URL and the network"
        );
        assert_eq!(
            failed("exit 6"),
            "cannot read https://download.example/base.txz: exit status: 6; check the URL and the network"
        );
        // More messages than a pipe holds.
        let digest = run("head -c 300000 /dev/zero >&2; printf abc", long, false).unwrap();
        assert_eq!(digest, Digest::of(b"abc"));
    }

    #[test]
    fn url_without_https_is_refused() {
        check_url("https://download.example/a_b-c%20d?x=1#y").unwrap();
        for bad in [
            "http://download.example/base.txz",
            "file:///etc/passwd",
            "https://",
            "https:///x",
            "https://-o/x",
            "https://a b/",
            "https://a/\n",
            "https://a/{b,c}",
        ] {
            assert!(check_url(bad).is_err(), "{bad}");
        }
    }
}
