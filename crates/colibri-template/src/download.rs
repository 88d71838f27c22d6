//! Download of an archive by fetch(1) of FreeBSD, or by curl(1).

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::command::ExternalCommand;
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
/// Maximum length of the program's messages that an error contains, in bytes.
const MAX_MESSAGES: u64 = 4096;

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
    let command = command(url, find_program());
    // The environment may name a proxy or certificates.
    let mut child = Command::new(&command.program)
        .args(&command.args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| {
            command.failed(&format!(
                "{error}; install curl, or download the file and give its path"
            ))
        })?;
    let copied = child
        .stdout
        .take()
        .ok_or_else(|| command.failed("no standard output"))
        .and_then(|stdout| copy(&command, stdout, to, max_bytes, cancellation, progress));
    if copied.is_err() {
        // It cannot fail for a child that was not waited for.
        drop(child.kill());
    }
    let status = child
        .wait()
        .map_err(|error| command.failed(&error.to_string()))?;
    let digest = copied?;
    match status.success() {
        true => Ok(digest),
        false => Err(TemplateError::Source {
            archive: url.to_owned(),
            problem: format!("{}; check the URL and the network", messages(&mut child)),
        }),
    }
}

fn messages(child: &mut Child) -> String {
    let mut bytes = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        // The program has ended; an error leaves the message empty.
        drop(stderr.take(MAX_MESSAGES).read_to_end(&mut bytes));
    }
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

/// Copies the program's output into a file.
fn copy(
    command: &ExternalCommand,
    stdout: ChildStdout,
    to: &mut File,
    max_bytes: u64,
    cancellation: &Cancellation,
    progress: &dyn Fn(InitProgress<'_>),
) -> Result<Digest, TemplateError> {
    let begin = Instant::now();
    let mut last_byte = begin;
    let mut bytes = 0;
    let descriptor = stdout.as_fd().try_clone_to_owned();
    let descriptor = descriptor.map_err(|error| command.failed(&error.to_string()))?;
    let budget = ByteBudget::new(max_bytes);
    let mut input = HashingReader::new(BoundedReader::new(stdout, &budget, cancellation));
    let mut buffer = vec![0; 64 * 1024];
    loop {
        cancellation.check()?;
        if last_byte.elapsed() > IDLE_TIMEOUT || begin.elapsed() > TIMEOUT {
            return Err(
                command.failed("the download is too slow; download the file and give its path")
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
                return Err(
                    stop_error(&error).unwrap_or_else(|| command.failed(&error.to_string()))
                );
            }
        };
        to.write_all(&buffer[..count])
            .map_err(TemplateError::file("write", "the downloaded archive"))?;
        last_byte = Instant::now();
        bytes += count as u64;
        progress(InitProgress::Downloaded { bytes });
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
