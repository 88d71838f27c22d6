//! A look at the host by one of its own programs, never longer than it may take: doctor must answer whatever is broken.

use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Most that is read of what a program says.
const MOST: u64 = 16 * 1024;
/// Between two looks whether it has ended.
const LOOK: Duration = Duration::from_millis(5);

/// What a program said.
#[derive(Debug, Clone)]
pub struct Said {
    /// How it ended; absent where it was killed because its time was up.
    pub status: Option<ExitStatus>,
    /// On stdout.
    pub out: String,
    /// On stderr.
    pub err: String,
}

impl Said {
    /// It ended well.
    #[must_use]
    pub fn worked(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// Its complaint in one line, for a finding.
    #[must_use]
    pub fn complaint(&self) -> String {
        let words = self.err.split_whitespace().collect::<Vec<_>>().join(" ");
        match (self.status, words.is_empty()) {
            (None, _) => format!("it did not end in time; {words}")
                .trim_end_matches("; ")
                .to_owned(),
            (Some(_), false) => words,
            (Some(status), true) => status.to_string(),
        }
    }
}

/// Runs a program with nothing to read and an empty environment, and kills it when `limit` has passed. Blocks.
///
/// # Errors
/// It cannot be started.
pub fn run(program: &Path, args: &[String], limit: Duration) -> io::Result<Said> {
    let mut child = Command::new(program)
        .args(args)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let readers = read(child.stdout.take()).and_then(|out| Ok((out, read(child.stderr.take())?)));
    let (out, err) = match readers {
        Ok(readers) => readers,
        Err(error) => {
            // The child must not outlive this call.
            child.kill()?;
            child.wait()?;
            return Err(error);
        }
    };
    let until = Instant::now() + limit;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break Some(status),
            None if Instant::now() >= until => {
                child.kill()?;
                child.wait()?;
                break None;
            }
            None => thread::sleep(LOOK),
        }
    };
    Ok(Said {
        status,
        out: text(out, until),
        err: text(err, until),
    })
}

fn read(from: Option<impl Read + Send + 'static>) -> io::Result<JoinHandle<Vec<u8>>> {
    thread::Builder::new().spawn(move || {
        let mut bytes = Vec::new();
        if let Some(from) = from {
            let _ = from.take(MOST).read_to_end(&mut bytes);
        }
        bytes
    })
}

/// A grandchild may hold the pipe for ever: what is not there in time is not waited for.
fn text(reader: JoinHandle<Vec<u8>>, until: Instant) -> String {
    let until = until.max(Instant::now() + Duration::from_millis(100));
    while !reader.is_finished() && Instant::now() < until {
        thread::sleep(LOOK);
    }
    if !reader.is_finished() {
        return String::new();
    }
    String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, limit: Duration) -> Said {
        run(
            Path::new("/bin/sh"),
            &["-c".to_owned(), script.to_owned()],
            limit,
        )
        .unwrap()
    }

    #[test]
    fn a_program_is_heard_and_one_that_hangs_is_ended() {
        let said = sh("echo a; echo b >&2; exit 3", Duration::from_secs(20));
        assert_eq!((said.out.as_str(), said.complaint().as_str()), ("a\n", "b"));
        assert!(!said.worked() && sh(":", Duration::from_secs(20)).worked());
        let hung = sh("exec sleep 1000", Duration::from_millis(50));
        assert_eq!(hung.complaint(), "it did not end in time");
        // A grandchild that keeps the pipe keeps nobody.
        assert!(sh("sleep 30 & exit 0", Duration::from_millis(200)).worked());
        assert!(run(Path::new("/absent"), &[], LOOK).is_err());
    }
}
