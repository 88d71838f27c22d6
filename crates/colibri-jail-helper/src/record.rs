//! What this program remembers of the agents it started: files in a directory that only root can read. They
//! prove whose a process or a jail is. A process is named by pid and start time, so that a reused pid is
//! another process.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use colibri_jail_core::{JailName, JailPath};

use crate::error::Stop;
use crate::place::{self, PlaceError, Trust};
use crate::{fixed, sys};

/// A record is a few short lines.
const LONGEST: u64 = 4096;

/// A process, told apart from a later one of the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// Start time in the system's own unit: clock ticks since boot on Linux, microseconds since 1970 on FreeBSD.
    pub(crate) start: u64,
}

/// One agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// The caller.
    pub(crate) uid: u32,
    pub(crate) jail: JailName,
    /// The jail was made for it.
    pub(crate) made: bool,
    /// Its first process on the host.
    pub(crate) first: Process,
    /// Who started it, and on FreeBSD is the reaper of all that it starts.
    pub(crate) parent: Process,
    /// Jail id on FreeBSD, else 0.
    pub(crate) jid: i32,
    /// Linux counts start times from this boot.
    pub(crate) boot: String,
}

impl Record {
    fn to_text(&self) -> String {
        let Self {
            uid,
            jail,
            made,
            first,
            parent,
            jid,
            boot,
        } = self;
        format!(
            "uid={uid}\njail={jail}\nmade={made}\npid={}\nstart={}\nparent={}\nparent_start={}\njid={jid}\nboot={boot}\n",
            first.pid, first.start, parent.pid, parent.start
        )
    }

    /// Nothing but what [`Record::to_text`] writes.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let mut value = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix('=');
        let record = Self {
            uid: value("uid")?.parse().ok()?,
            jail: value("jail")?.parse().ok()?,
            made: value("made")?.parse().ok()?,
            first: Process {
                pid: value("pid")?.parse().ok()?,
                start: value("start")?.parse().ok()?,
            },
            parent: Process {
                pid: value("parent")?.parse().ok()?,
                start: value("parent_start")?.parse().ok()?,
            },
            jid: value("jid")?.parse().ok()?,
            boot: value("boot")?.to_owned(),
        };
        (record.to_text() == text).then_some(record)
    }

    /// `@` is in no jail's name, so that no record of an entered jail is that of one that was made.
    fn file_name(&self) -> String {
        if self.made {
            self.jail.to_string()
        } else {
            format!("{}@{}", self.jail, self.first.pid)
        }
    }
}

/// The directory of records.
pub(crate) struct Records(OwnedFd);

impl Records {
    /// Opens it, and makes it if it is missing.
    pub(crate) fn open() -> Result<Self, Stop> {
        let path = fixed::records();
        let place: JailPath = path
            .parse()
            .map_err(|_| PlaceError::NotAFile(path.clone()))?;
        let (above, name) = place::parent(&place);
        let above = place::directory(&above, Trust::RootOnly)?;
        match sys::make_directory_at(&above, name, 0o700) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(PlaceError::Io(path, error).into());
            }
            _ => {}
        }
        let directory = place::directory(&place, Trust::RootOnly)?;
        let data = directory
            .try_clone()
            .and_then(|directory| File::from(directory).metadata())
            .map_err(|error| PlaceError::Io(path.clone(), error))?;
        // What others could read would tell them whose agents run.
        if data.mode() & 0o077 != 0 {
            return Err(PlaceError::Writable(path, data.mode() & 0o7777).into());
        }
        Ok(Self(directory))
    }

    /// Waits until nobody else changes records, until the returned descriptor is closed. Nobody but root can
    /// open the file, and signals are blocked, so that no caller can hold others up.
    pub(crate) fn lock(&self) -> Result<File, Stop> {
        let lock = sys::create_file_at(&self.0, "lock", false)
            .map_err(|error| failed("opening lock", error))?;
        let lock = File::from(lock);
        lock.lock().map_err(|error| failed("locking lock", error))?;
        Ok(lock)
    }

    /// Every record that can be read; one that cannot is nobody's.
    pub(crate) fn all(&self) -> Result<Vec<Record>, Stop> {
        let names = sys::names_in(&self.0).map_err(|error| failed("reading", error))?;
        Ok(names
            .iter()
            .filter(|name| name.as_str() != "lock" && !name.starts_with('.'))
            .filter_map(|name| self.read(name))
            .collect())
    }

    /// The records of one caller's agents.
    pub(crate) fn of(&self, uid: u32) -> Result<Vec<Record>, Stop> {
        let boot = sys::boot();
        let mut all = self.all()?;
        all.retain(|record| record.uid == uid && record.boot == boot);
        Ok(all)
    }

    /// The record of a jail that was made.
    pub(crate) fn made(&self, jail: &JailName) -> Option<Record> {
        self.read(jail.as_str())
            .filter(|record| record.made && record.boot == sys::boot())
    }

    fn read(&self, name: &str) -> Option<Record> {
        let file = File::from(sys::open_file_at(&self.0, name).ok()?);
        file.metadata().ok().filter(|data| data.is_file())?;
        let record = Record::parse(&place::text(name, file, LONGEST).ok()?)?;
        (record.file_name() == name).then_some(record)
    }

    /// Writes a record whole, or not at all. The lock is held.
    pub(crate) fn write(&self, record: &Record) -> Result<(), Stop> {
        let name = record.file_name();
        let new = format!(".{name}");
        let _ = sys::remove_file_at(&self.0, &new);
        sys::create_file_at(&self.0, &new, true)
            .and_then(|file| File::from(file).write_all(record.to_text().as_bytes()))
            .and_then(|()| sys::rename_at(&self.0, &new, &name))
            .map_err(|error| failed("writing", error))
    }

    /// Forgets an agent; one that is forgotten already is done.
    pub(crate) fn forget(&self, record: &Record) {
        let _ = sys::remove_file_at(&self.0, &record.file_name());
    }
}

fn failed(doing: &str, error: io::Error) -> Stop {
    Stop::system(format!("{doing} in {}", fixed::records()), error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record() -> Record {
        Record {
            uid: 1001,
            jail: "colibri-x".parse().unwrap(),
            made: true,
            first: Process { pid: 7, start: 70 },
            parent: Process { pid: 6, start: 60 },
            jid: 0,
            boot: "b".into(),
        }
    }

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        let made = record();
        let entered = Record {
            made: false,
            jail: "web".parse().unwrap(),
            ..record()
        };
        for record in [&made, &entered] {
            assert_eq!(Record::parse(&record.to_text()).as_ref(), Some(record));
        }
        assert_eq!(
            (made.file_name(), entered.file_name()),
            ("colibri-x".into(), "web@7".into())
        );
    }

    proptest! {
        #[test]
        fn a_torn_or_changed_record_is_none(cut in 0..90_usize, byte in any::<u8>()) {
            let text = record().to_text();
            let cut = cut.min(text.len() - 1);
            prop_assert_eq!(Record::parse(&text[..cut]), None);
            let mut bytes = text.clone().into_bytes();
            bytes[cut] = byte;
            if let Ok(changed) = String::from_utf8(bytes)
                && let Some(read) = Record::parse(&changed)
            {
                prop_assert_eq!(read.to_text(), changed);
            }
        }
    }
}
