//! Colibri and its alternatives with one interface.

mod colibri;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
mod log;
mod plain;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::spawn::COMMAND;

/// Colibri or an alternative.
pub(crate) trait Peer {
    /// Returns the name in tables.
    fn name(&self) -> String;

    /// Returns the note in tables.
    fn note(&self) -> Option<String> {
        None
    }
}

/// A peer that runs programs in the background and makes their output readable.
pub(crate) trait SpawnPeer: Peer {
    /// Runs a command that writes a line feed and then waits. Returns the time from the request until that byte is
    /// readable. Ends the command.
    fn first_byte(&mut self, command: &[&str]) -> Result<Duration>;
}

/// A peer that runs programs in the background and stores their output.
pub(crate) trait StorePeer: Peer {
    /// Runs `cat` on a file of `bytes` bytes. Returns the time from the request until all bytes are stored. Compares the
    /// stored bytes with the file and removes them.
    fn store(&mut self, file: &Path, bytes: u64) -> Result<Duration>;
}

/// An alternative that cannot run on this host.
#[derive(Debug)]
pub(crate) struct Unavailable {
    pub(crate) name: &'static str,
    pub(crate) reason: String,
}

/// Available and unavailable peers.
pub(crate) struct Peers<P: ?Sized> {
    pub(crate) available: Vec<Box<P>>,
    pub(crate) unavailable: Vec<Unavailable>,
}

/// Directories of programs.
#[derive(Debug, Clone)]
pub(crate) struct Directories {
    /// Colibri's programs.
    pub(crate) programs: PathBuf,
    /// Tools that scripts/bench.sh installed.
    #[cfg_attr(not(target_os = "linux"), expect(dead_code))]
    pub(crate) tools: PathBuf,
}

impl<P: Peer + ?Sized> Peers<P> {
    fn new(available: Vec<Box<P>>) -> Self {
        Self {
            available,
            unavailable: Vec::new(),
        }
    }

    /// Adds an alternative. It is available if its trial run succeeds.
    fn add(
        &mut self,
        name: &'static str,
        peer: Result<Box<P>>,
        trial_run: impl FnOnce(&mut P) -> Result<Duration>,
    ) {
        let tested = peer.and_then(|mut peer| {
            trial_run(&mut peer)?;
            Ok(peer)
        });
        match tested {
            Ok(peer) => self.available.push(peer),
            Err(error) => self.unavailable.push(Unavailable {
                name,
                reason: format!("{error:#}")
                    .trim()
                    .replace('\n', "; ")
                    .replace('|', "/"),
            }),
        }
    }

    /// Fails with `required` if an alternative except systemd-run is unavailable.
    pub(crate) fn require_all(self, required: bool) -> Result<Self> {
        for peer in self.unavailable.iter().filter(|_| required) {
            ensure!(
                peer.name == SYSTEMD_RUN,
                "{} is unavailable: {}",
                peer.name,
                peer.reason
            );
        }
        Ok(self)
    }
}

/// Name of the alternative that needs systemd as the init system.
const SYSTEMD_RUN: &str = "systemd-run and a pipe";

/// Returns all peers that start commands. Ratios are relative to the first one, Colibri.
pub(crate) fn spawning(directories: &Directories) -> Result<Peers<dyn SpawnPeer>> {
    let mut peers: Peers<dyn SpawnPeer> = Peers::new(vec![
        Box::new(colibri::ColibriSpawn::start(&directories.programs, false)?),
        Box::new(colibri::ColibriSpawn::start(&directories.programs, true)?),
        Box::new(plain::PosixSpawn),
    ]);
    peers.add(plain::BWRAP, Ok(Box::new(plain::Bubblewrap)), |peer| {
        peer.first_byte(COMMAND)
    });
    #[cfg(target_os = "linux")]
    linux::add_spawning(&mut peers, directories);
    Ok(peers)
}

/// Returns all peers that store output. Ratios are relative to the first one, the upper bound.
pub(crate) fn storing(directories: &Directories) -> Result<Peers<dyn StorePeer>> {
    let programs = &directories.programs;
    let mut peers: Peers<dyn StorePeer> = Peers::new(vec![
        Box::new(plain::Cat),
        Box::new(colibri::ColibriStore::start(programs, false, false)?),
        Box::new(colibri::ColibriStore::start(programs, true, false)?),
        Box::new(colibri::ColibriStore::start(programs, false, true)?),
    ]);
    peers.add(
        plain::BWRAP_CAT,
        Ok(Box::new(plain::BubblewrapCat)),
        store_one_line,
    );
    #[cfg(target_os = "linux")]
    linux::add_storing(&mut peers, directories);
    Ok(peers)
}

/// Lets an alternative store one line, as a trial run.
fn store_one_line(peer: &mut (dyn StorePeer + 'static)) -> Result<Duration> {
    let file = tempfile::Builder::new()
        .prefix("colibri-bench-")
        .tempfile_in("/var/tmp")?;
    std::fs::write(file.path(), "a line\n")?;
    peer.store(file.path(), 7)
}

/// Checks that the stored output, in consecutive files, equals the written file.
fn check_stored(written: &Path, stored: &[PathBuf]) -> Result<()> {
    use std::io::{BufRead, BufReader, Read};

    let open = |path: &PathBuf| {
        std::fs::File::open(path).with_context(|| format!("opening {}", path.display()))
    };
    let mut concatenated: Box<dyn Read> = Box::new(std::io::empty());
    for path in stored {
        concatenated = Box::new(concatenated.chain(open(path)?));
    }
    let mut stored = BufReader::with_capacity(1 << 18, concatenated);
    let mut original = BufReader::with_capacity(1 << 18, open(&written.to_owned())?);
    let mut offset = 0;
    loop {
        let (left, right) = (original.fill_buf()?, stored.fill_buf()?);
        let common = left.len().min(right.len());
        if common == 0 {
            ensure!(
                left.is_empty() && right.is_empty(),
                "stored and written bytes differ in length; the first {offset} bytes are equal"
            );
            return Ok(());
        }
        ensure!(
            left.get(..common) == right.get(..common),
            "stored and written bytes differ after byte {offset}, within {common} bytes"
        );
        original.consume(common);
        stored.consume(common);
        offset += common;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_that_differs_from_written_bytes_fails() {
        let directory = tempfile::tempdir().unwrap();
        for (written, stored, is_equal) in [
            ("one\ntwo\n", vec!["one\ntwo\n"], true),
            ("one\ntwo\n", vec!["one\nt", "", "wo\n"], true),
            ("", vec![], true),
            ("one\ntwo\n", vec!["one\n"], false),
            ("one\n", vec!["one\n", "two\n"], false),
            ("one\ntwo\n", vec!["one\nTwo\n"], false),
        ] {
            let create_file = |name: &str, text: &str| {
                let path = directory.path().join(name);
                std::fs::write(&path, text).unwrap();
                path
            };
            let original = create_file("written", written);
            let stored: Vec<PathBuf> = stored
                .iter()
                .enumerate()
                .map(|(number, text)| create_file(&number.to_string(), text))
                .collect();
            let result = check_stored(&original, &stored);
            assert_eq!(result.is_ok(), is_equal, "{written:?}: {result:?}");
        }
    }
}
