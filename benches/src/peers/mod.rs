//! What one would use instead of Colibri, behind one interface.

mod plain;

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::colibri::Colibri;

/// A way to run programs in the background and to see what they write.
pub(crate) trait Peer {
    /// As tables show it.
    fn name(&self) -> &str;

    /// Runs a command that writes something and then waits for its end; how long it takes from the request until
    /// the first byte can be read. It is gone afterwards.
    fn first_byte(&mut self, command: &[&str]) -> Result<Duration>;
}

/// One that cannot run here, and why.
pub(crate) struct Absent {
    pub(crate) name: &'static str,
    pub(crate) why: String,
}

/// All that are measured. The first is Colibri, which the others are compared with.
pub(crate) fn all(programs: &Path) -> Result<(Vec<Box<dyn Peer>>, Vec<Absent>)> {
    let present: Vec<Box<dyn Peer>> = vec![
        Box::new(OurOwn::start(programs, false)?),
        Box::new(OurOwn::start(programs, true)?),
        Box::new(plain::PosixSpawn),
        Box::new(plain::Bubblewrap),
    ];
    Ok((present, Vec::new()))
}

struct OurOwn {
    colibri: Colibri,
    sandbox: bool,
}

impl OurOwn {
    fn start(programs: &Path, sandbox: bool) -> Result<Self> {
        let colibri = Colibri::start(programs)?;
        Ok(Self { colibri, sandbox })
    }
}

impl Peer for OurOwn {
    fn name(&self) -> &str {
        match self.sandbox {
            false => "Colibri, no jail",
            true => "Colibri, sandbox",
        }
    }

    fn first_byte(&mut self, command: &[&str]) -> Result<Duration> {
        self.colibri.first_byte(command, self.sandbox)
    }
}
