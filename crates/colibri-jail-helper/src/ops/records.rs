//! Records of the agents that this program started: files in a directory that only root can read. A record proves which
//! caller a process or a jail belongs to. A process is identified by pid and start time, so a reused pid does not match.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use colibri_jail_core::{JailName, JailPath};

use crate::error::HelperError;
use crate::sys::{self, SysError};
use crate::{paths, safe_open};

/// Maximum size of a record, in bytes.
const MAX_BYTES: u64 = 4096;
/// One in this many calls deletes the records of ended agents, so that the average cost of a call does not grow with
/// the number of agents.
const PRUNE_INTERVAL: u32 = 16;
/// The file that serializes changes of records.
const LOCK: &str = "lock";

/// A process, distinct from a later one with the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProcessId {
    pub(super) pid: u32,
    /// Start time in the unit of the system: clock ticks since boot on Linux, microseconds since 1970 on FreeBSD.
    pub(super) start: u64,
}

impl ProcessId {
    /// Returns the id of a running process.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let start = sys::process_info(pid)?.start;
        Some(Self { pid, start })
    }

    /// Reports whether the process has not ended.
    pub(super) fn is_running(self) -> bool {
        Self::of(self.pid) == Some(self)
    }
}

/// One agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// The caller.
    pub(super) uid: u32,
    pub(super) jail: JailName,
    /// Whether the jail was created for the agent.
    pub(super) created: bool,
    /// The agent's first process on the host.
    pub(super) first: ProcessId,
    /// The parent of the agent's first process: on FreeBSD the monitor, which is the reaper of the agent's processes.
    pub(super) parent: ProcessId,
    /// The process that requested the agent.
    pub(super) requester: ProcessId,
    /// Jail id on FreeBSD, 0 on Linux.
    pub(super) jid: i32,
    /// The boot to which start times on Linux, and ids of jails on FreeBSD, are relative.
    pub(super) boot: String,
}

impl Record {
    fn to_text(&self) -> String {
        let Self {
            uid,
            jail,
            created,
            first,
            parent,
            requester,
            jid,
            boot,
        } = self;
        format!(
            "uid={uid}\njail={jail}\nmade={created}\npid={}\nstart={}\nparent={}\nparent_start={}\nrequester={}\nrequester_start={}\njid={jid}\nboot={boot}\n",
            first.pid, first.start, parent.pid, parent.start, requester.pid, requester.start
        )
    }

    /// Parses exactly what [`Record::to_text`] writes.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let mut value = |key: &str| lines.next()?.strip_prefix(key)?.strip_prefix('=');
        let record = Self {
            uid: value("uid")?.parse().ok()?,
            jail: value("jail")?.parse().ok()?,
            created: value("made")?.parse().ok()?,
            first: ProcessId {
                pid: value("pid")?.parse().ok()?,
                start: value("start")?.parse().ok()?,
            },
            parent: ProcessId {
                pid: value("parent")?.parse().ok()?,
                start: value("parent_start")?.parse().ok()?,
            },
            requester: ProcessId {
                pid: value("requester")?.parse().ok()?,
                start: value("requester_start")?.parse().ok()?,
            },
            jid: value("jid")?.parse().ok()?,
            boot: value("boot")?.to_owned(),
        };
        (record.to_text() == text).then_some(record)
    }

    /// Returns the name of the record's file. A jail's name cannot contain `@`, so the record of an entered jail never
    /// has the name of a created one.
    fn file_name(&self) -> String {
        if self.created {
            self.jail.to_string()
        } else {
            format!("{}@{}", self.jail, self.first.pid)
        }
    }
}

/// The directory of records.
pub(super) struct Records {
    directory: OwnedFd,
    pub(super) path: JailPath,
}

impl Records {
    /// Opens the directory, which is created if it is missing. Only root can read it: records reveal who runs agents.
    pub(super) fn open() -> Result<Self, HelperError> {
        let path = safe_open::fixed_path(&paths::records())?;
        let directory = safe_open::private_directory(&path)?;
        Ok(Self { directory, path })
    }

    /// Waits for the lock on all records, which is held until the returned file is closed. Only root can open the file,
    /// and signals are blocked, so a caller cannot delay other callers.
    pub(super) fn lock(&self) -> Result<File, HelperError> {
        let lock = sys::create_file_at(&self.directory, LOCK, false)
            .map(File::from)
            .and_then(|lock| lock.lock().map(|()| lock));
        Ok(lock.map_err(self.cannot("lock"))?)
    }

    /// Returns every valid record.
    fn all(&self) -> Result<Vec<Record>, HelperError> {
        let names = sys::names_in(&self.directory).map_err(self.cannot("read"))?;
        Ok(names
            .iter()
            .filter(|name| name.as_str() != LOCK && !name.starts_with('.'))
            .filter_map(|name| self.read(name))
            .collect())
    }

    /// Returns the records of one caller's agents.
    pub(super) fn of_caller(&self, uid: u32) -> Result<Vec<Record>, HelperError> {
        let boot = sys::boot_id();
        let mut records = self.all()?;
        records.retain(|record| record.uid == uid && record.boot == boot);
        Ok(records)
    }

    /// Returns the record of a created jail.
    pub(super) fn created(&self, jail: &JailName) -> Option<Record> {
        self.read(jail.as_str())
            .filter(|record| record.created && record.boot == sys::boot_id())
    }

    fn read(&self, name: &str) -> Option<Record> {
        let file = safe_open::regular_file_at(&self.directory, name, name).ok()?;
        let record = Record::parse(&safe_open::read_text(name, file, MAX_BYTES).ok()?)?;
        (record.file_name() == name).then_some(record)
    }

    /// Writes a record atomically. The caller holds the lock.
    pub(super) fn write(&self, record: &Record) -> Result<(), HelperError> {
        let name = record.file_name();
        let temporary = format!(".{name}");
        let _ = sys::remove_file_at(&self.directory, &temporary);
        let written = sys::create_file_at(&self.directory, &temporary, true)
            .and_then(|file| File::from(file).write_all(record.to_text().as_bytes()))
            .and_then(|()| sys::rename_at(&self.directory, &temporary, &name));
        Ok(written.map_err(self.cannot("write a record in"))?)
    }

    /// Deletes a record. A missing record is not an error.
    pub(super) fn delete(&self, record: &Record) {
        let _ = sys::remove_file_at(&self.directory, &record.file_name());
    }

    /// Deletes the records of ended agents in one of [`PRUNE_INTERVAL`] calls. The caller holds the lock.
    pub(super) fn prune(&self, has_ended: impl Fn(&Record) -> bool) -> Result<(), HelperError> {
        if std::process::id().is_multiple_of(PRUNE_INTERVAL) {
            for record in self.all()?.iter().filter(|record| has_ended(record)) {
                self.delete(record);
            }
        }
        Ok(())
    }

    fn cannot(&self, action: &str) -> impl FnOnce(io::Error) -> SysError {
        sys::cannot(format!("{action} {}", self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record() -> Record {
        Record {
            uid: 1001,
            jail: "colibri-x".parse().unwrap(),
            created: true,
            first: ProcessId { pid: 7, start: 70 },
            parent: ProcessId { pid: 6, start: 60 },
            requester: ProcessId { pid: 5, start: 50 },
            jid: 0,
            boot: "b".into(),
        }
    }

    #[test]
    fn record_round_trips_through_text() {
        let created = record();
        let entered = Record {
            created: false,
            jail: "web".parse().unwrap(),
            ..record()
        };
        for record in [&created, &entered] {
            assert_eq!(Record::parse(&record.to_text()).as_ref(), Some(record));
        }
        assert_eq!(
            (created.file_name(), entered.file_name()),
            ("colibri-x".into(), "web@7".into())
        );
    }

    proptest! {
        #[test]
        fn torn_or_changed_record_does_not_parse(cut in 0..90_usize, byte in any::<u8>()) {
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
