//! The alternatives to Colibri behind one interface.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
mod log;
mod ours;
mod plain;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::spawn::COMMAND;

/// Name in tables.
pub(crate) trait Named {
    fn name(&self) -> String;

    /// Note in tables.
    fn note(&self) -> Option<String> {
        None
    }
}

/// Runs programs in the background and shows their output.
pub(crate) trait Spawns: Named {
    /// Runs a command that writes a line feed and then waits. Returns the time from the request until that byte is
    /// readable, and ends the command.
    fn first_byte(&mut self, command: &[&str]) -> Result<Duration>;
}

/// Runs programs in the background and stores their output.
pub(crate) trait Copies: Named {
    /// Runs `cat` on a file of `bytes` bytes. Returns the time from the request until all of them are stored, then
    /// compares and removes them.
    fn copy(&mut self, file: &Path, bytes: u64) -> Result<Duration>;
}

/// An alternative that cannot run here, and the reason.
#[derive(Debug)]
pub(crate) struct Absent {
    pub(crate) name: &'static str,
    pub(crate) why: String,
}

/// Available and unavailable alternatives.
pub(crate) struct Peers<P: ?Sized> {
    pub(crate) present: Vec<Box<P>>,
    pub(crate) absent: Vec<Absent>,
}

/// Directories of programs.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// Colibri's programs.
    pub(crate) programs: PathBuf,
    /// Tools that scripts/bench.sh installed.
    #[cfg_attr(not(target_os = "linux"), expect(dead_code))]
    pub(crate) tools: PathBuf,
}

impl<P: Named + ?Sized> Peers<P> {
    fn new(present: Vec<Box<P>>) -> Self {
        Self {
            present,
            absent: Vec::new(),
        }
    }

    /// Adds an alternative after a trial run.
    fn add(
        &mut self,
        name: &'static str,
        peer: Result<Box<P>>,
        once: impl FnOnce(&mut P) -> Result<Duration>,
    ) {
        let tried = peer.and_then(|mut peer| {
            once(&mut peer)?;
            Ok(peer)
        });
        match tried {
            Ok(peer) => self.present.push(peer),
            Err(error) => self.absent.push(Absent {
                name,
                why: format!("{error:#}")
                    .trim()
                    .replace('\n', "; ")
                    .replace('|', "/"),
            }),
        }
    }

    /// With `all`, fails if an alternative is unavailable for another reason than a missing systemd.
    pub(crate) fn complete(self, all: bool) -> Result<Self> {
        for absent in self.absent.iter().filter(|_| all) {
            ensure!(
                absent.name == SYSTEMD_RUN,
                "{} is unavailable: {}",
                absent.name,
                absent.why
            );
        }
        Ok(self)
    }
}

const SYSTEMD_RUN: &str = "systemd-run and a pipe";

/// Returns all programs that start commands. Ratios are relative to the first one, Colibri.
pub(crate) fn spawning(places: &Places) -> Result<Peers<dyn Spawns>> {
    let mut peers: Peers<dyn Spawns> = Peers::new(vec![
        Box::new(ours::Ours::start(&places.programs, false)?),
        Box::new(ours::Ours::start(&places.programs, true)?),
        Box::new(plain::PosixSpawn),
    ]);
    peers.add(plain::BWRAP, Ok(Box::new(plain::Bubblewrap)), |peer| {
        peer.first_byte(COMMAND)
    });
    #[cfg(target_os = "linux")]
    linux::add_spawning(&mut peers, places);
    Ok(peers)
}

/// Returns all programs that store output. The first one is the upper bound.
pub(crate) fn copying(places: &Places) -> Result<Peers<dyn Copies>> {
    let programs = &places.programs;
    let mut peers: Peers<dyn Copies> = Peers::new(vec![
        Box::new(plain::Cat),
        Box::new(ours::Kept::start(programs, false, false)?),
        Box::new(ours::Kept::start(programs, true, false)?),
        Box::new(ours::Kept::start(programs, false, true)?),
    ]);
    peers.add(plain::BWRAP_CAT, Ok(Box::new(plain::BubblewrapCat)), a_line);
    #[cfg(target_os = "linux")]
    linux::add_copying(&mut peers, places);
    Ok(peers)
}

/// Tries an alternative with one line.
fn a_line(peer: &mut (dyn Copies + 'static)) -> Result<Duration> {
    let file = tempfile::Builder::new()
        .prefix("colibri-bench-")
        .tempfile_in("/var/tmp")?;
    std::fs::write(file.path(), "a line\n")?;
    peer.copy(file.path(), 7)
}

/// Checks that the stored output, in consecutive files, equals the written data.
fn check(written: &Path, stored: &[PathBuf]) -> Result<()> {
    use std::io::{BufRead, BufReader, Read};

    let open = |path: &PathBuf| {
        std::fs::File::open(path).with_context(|| format!("opening {}", path.display()))
    };
    let mut chain: Box<dyn Read> = Box::new(std::io::empty());
    for path in stored {
        chain = Box::new(chain.chain(open(path)?));
    }
    let mut chain = BufReader::with_capacity(1 << 18, chain);
    let mut original = BufReader::with_capacity(1 << 18, open(&written.to_owned())?);
    let mut at = 0;
    loop {
        let (left, right) = (original.fill_buf()?, chain.fill_buf()?);
        let both = left.len().min(right.len());
        if both == 0 {
            ensure!(
                left.is_empty() && right.is_empty(),
                "stored and written bytes differ in length; the first {at} bytes are equal"
            );
            return Ok(());
        }
        ensure!(
            left.get(..both) == right.get(..both),
            "stored and written bytes differ after byte {at}, within {both} bytes"
        );
        original.consume(both);
        chain.consume(both);
        at += both;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_that_differs_from_written_bytes_fails() {
        let directory = tempfile::tempdir().unwrap();
        for (written, stored, good) in [
            ("one\ntwo\n", vec!["one\ntwo\n"], true),
            ("one\ntwo\n", vec!["one\nt", "", "wo\n"], true),
            ("", vec![], true),
            ("one\ntwo\n", vec!["one\n"], false),
            ("one\n", vec!["one\n", "two\n"], false),
            ("one\ntwo\n", vec!["one\nTwo\n"], false),
        ] {
            let file = |name: &str, text: &str| {
                let path = directory.path().join(name);
                std::fs::write(&path, text).unwrap();
                path
            };
            let original = file("written", written);
            let stored: Vec<PathBuf> = stored
                .iter()
                .enumerate()
                .map(|(at, text)| file(&at.to_string(), text))
                .collect();
            let outcome = check(&original, &stored);
            assert_eq!(outcome.is_ok(), good, "{written:?}: {outcome:?}");
        }
    }
}
