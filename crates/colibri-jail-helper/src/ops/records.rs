//! Records of the agents that this program started: files in directories that only root can read, one for each caller. A
//! record proves which caller a process or a jail belongs to. A process is identified by pid and start time, so a reused pid
//! does not match.
//!
//! A record is added and deleted under the lock of its caller, so that no caller waits for another one. A process that ends
//! at any step leaves no lock and at most a temporary file or the record of an ended agent, which the next [`Records::add`]
//! deletes.

use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use colibri_jail_core::{JailName, JailPath};

use crate::error::HelperError;
use crate::sys::{self, SysError};
use crate::{
    paths,
    safe_open::{self, OpenError},
};

/// Maximum size of a record, in bytes.
const MAX_BYTES: u64 = 4096;
/// The file that serializes changes of one caller's records.
const LOCK: &str = "lock";
/// Maximum time to wait for the lock. Only processes of the same caller hold it.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval between two attempts to lock.
const LOCK_INTERVAL: Duration = Duration::from_millis(5);
/// A record that is being written.
const TEMPORARY: &str = ".new";

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
    /// The monitor, which is the parent of the agent's first process, and on FreeBSD the reaper of all others.
    pub(super) parent: ProcessId,
    /// The process that requested the agent.
    pub(super) requester: ProcessId,
    /// Jail id on FreeBSD, 0 on Linux.
    pub(super) jid: i32,
    /// The boot to which start times on Linux, and ids of jails on FreeBSD, are relative.
    pub(super) boot: String,
}

impl Record {
    pub(super) fn to_text(&self) -> String {
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
    pub(super) fn parse(text: &str) -> Option<Self> {
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
    /// has the name of a created one. A name has at most 255 bytes, as a file's.
    pub(super) fn file_name(&self) -> String {
        if self.created {
            self.jail.to_string()
        } else {
            format!("@{}", self.first.pid)
        }
    }
}

/// The records of one caller.
pub(super) struct Records {
    uid: u32,
    directory: OwnedFd,
    path: JailPath,
}

impl Records {
    /// Opens the directory of a caller, which is created if it is missing. Only root can read it: records reveal who runs
    /// agents.
    pub(super) fn open(uid: u32) -> Result<Self, HelperError> {
        let all = paths::records();
        safe_open::private_directory(&safe_open::fixed_path(&all)?)?;
        let path = safe_open::fixed_path(&format!("{all}/{uid}"))?;
        let directory = safe_open::private_directory(&path)?;
        Ok(Self {
            uid,
            directory,
            path,
        })
    }

    /// Waits for the lock, which is held until the returned file is closed. The process that holds it gives up the
    /// scheduling that its caller chose, which could slow it down.
    fn lock(&self) -> Result<File, HelperError> {
        sys::reset_scheduling();
        let lock = sys::create_file_at(&self.directory, LOCK, false)
            .map(File::from)
            .map_err(self.cannot("open the lock of"))?;
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(lock),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(LOCK_INTERVAL);
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(HelperError::Busy(LOCK_TIMEOUT.as_secs()));
                }
                Err(TryLockError::Error(error)) => return Err(self.cannot("lock")(error).into()),
            }
        }
    }

    /// Returns every valid record of this boot.
    pub(super) fn all(&self) -> Result<Vec<Record>, HelperError> {
        let names = sys::names_in(&self.directory).map_err(self.cannot("read"))?;
        let boot = sys::boot_id();
        Ok(names
            .iter()
            .filter_map(|name| self.read(name))
            .filter(|record| record.boot == boot)
            .collect())
    }

    /// Returns the record of a created jail.
    pub(super) fn created(&self, jail: &JailName) -> Option<Record> {
        self.read(jail.as_str())
            .filter(|record| record.created && record.boot == sys::boot_id())
    }

    fn read(&self, name: &str) -> Option<Record> {
        self.try_read(name).ok().flatten()
    }

    /// Returns a valid record, or nothing if the file is none.
    ///
    /// # Errors
    ///
    /// The file cannot be read, for example without memory, so it may be a valid record.
    fn try_read(&self, name: &str) -> Result<Option<Record>, OpenError> {
        let text = safe_open::regular_file_at(&self.directory, name, name)
            .and_then(|file| safe_open::read_text(name, file, MAX_BYTES));
        match text {
            Err(OpenError::Io(name, error)) if error.kind() != io::ErrorKind::NotFound => {
                Err(OpenError::Io(name, error))
            }
            text => Ok(text
                .ok()
                .and_then(|text| Record::parse(&text))
                .filter(|record| record.file_name() == name && record.uid == self.uid)),
        }
    }

    /// Adds the record of an agent, and deletes those of ended agents. On Linux its first process must have its final user, and on
    /// FreeBSD it must not have entered the jail.
    ///
    /// # Errors
    ///
    /// The jail of another agent has the name, or `limit` agents of the caller run, or a record cannot be read.
    pub(super) fn add(
        &self,
        record: &Record,
        limit: u64,
        has_ended: impl Fn(&Record) -> bool,
    ) -> Result<(), HelperError> {
        let _lock = self.lock()?;
        let mut running = 0;
        for name in sys::names_in(&self.directory).map_err(self.cannot("read"))? {
            if name == LOCK {
                continue;
            }
            match self.try_read(&name)? {
                Some(other) if !has_ended(&other) => {
                    if record.created && other.file_name() == record.file_name() {
                        return Err(HelperError::JailExists(record.jail.to_string()));
                    }
                    running += 1;
                }
                // A killed helper or a full file system can leave a file that is not a record.
                _ => {
                    let _ = sys::remove_file_at(&self.directory, &name);
                }
            }
        }
        if running >= limit {
            return Err(HelperError::TooManyAgents(limit));
        }
        let written = sys::create_file_at(&self.directory, TEMPORARY, true)
            .and_then(|file| File::from(file).write_all(record.to_text().as_bytes()))
            .and_then(|()| sys::rename_at(&self.directory, TEMPORARY, &record.file_name()));
        if written.is_err() {
            let _ = sys::remove_file_at(&self.directory, TEMPORARY);
        }
        Ok(written.map_err(self.cannot("write a record in"))?)
    }

    /// Deletes a record, unless a later one has its name.
    pub(super) fn remove(&self, record: &Record) -> Result<(), HelperError> {
        let _lock = self.lock()?;
        let name = record.file_name();
        if self.try_read(&name)?.as_ref() == Some(record) {
            sys::remove_file_at(&self.directory, &name)
                .map_err(self.cannot("delete a record in"))?;
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
    use std::collections::BTreeSet;
    use std::io::{BufRead, BufReader};
    use std::path::Path;
    use std::process::{Command, Stdio};

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
            ("colibri-x".into(), "@7".into())
        );
    }

    /// Opens a directory without a check of its owner.
    fn records_in(directory: &Path) -> Records {
        Records {
            uid: record().uid,
            directory: File::open(directory).unwrap().into(),
            path: directory.to_str().unwrap().parse().unwrap(),
        }
    }

    /// Returns the record of another agent with the same name.
    fn later_record() -> Record {
        Record {
            first: ProcessId { pid: 7, start: 71 },
            parent: ProcessId { pid: 8, start: 71 },
            ..record()
        }
    }

    /// Returns the record of another agent with another name.
    fn other_record() -> Record {
        Record {
            jail: "colibri-y".parse().unwrap(),
            ..later_record()
        }
    }

    /// Returns the names of the files of a directory that contains the lock.
    fn files_beside_lock(directory: &Path) -> BTreeSet<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        let mut names: BTreeSet<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert!(names.remove(LOCK));
        names
    }

    /// Performs the first steps of [`Records::add`]: create the temporary file, write a half, write the rest, rename.
    fn add_until(records: &Records, steps: usize) {
        let _lock = records.lock().unwrap();
        let text = record().to_text();
        let written = match steps {
            0 => return,
            1 => "",
            2 => &text[..text.len() / 2],
            _ => text.as_str(),
        };
        let file = sys::create_file_at(&records.directory, TEMPORARY, true).unwrap();
        File::from(file).write_all(written.as_bytes()).unwrap();
        if steps > 3 {
            sys::rename_at(&records.directory, TEMPORARY, &record().file_name()).unwrap();
        }
    }

    #[test]
    fn add_after_a_crash_at_any_step_cleans_the_directory() {
        for steps in 0..=4 {
            for next in [later_record(), other_record()] {
                let directory = tempfile::tempdir().unwrap();
                let records = records_in(directory.path());
                add_until(&records, steps);
                let visible = records.read(&record().file_name());
                assert_eq!(visible, (steps == 4).then(record), "{steps}");
                records.add(&next, 1, |found| *found == record()).unwrap();
                let files = files_beside_lock(directory.path());
                assert_eq!(files, [next.file_name()].into(), "{steps}");
                assert_eq!(records.read(&next.file_name()), Some(next));
            }
        }
    }

    #[test]
    fn refused_add_keeps_the_records_of_running_agents() {
        let directory = tempfile::tempdir().unwrap();
        let records = records_in(directory.path());
        records.add(&record(), 1, |_| false).unwrap();
        let refused = records.add(&later_record(), 2, |_| false);
        assert!(matches!(refused, Err(HelperError::JailExists(_))));
        let refused = records.add(&other_record(), 1, |_| false);
        assert!(matches!(refused, Err(HelperError::TooManyAgents(1))));
        let files = files_beside_lock(directory.path());
        assert_eq!(files, [record().file_name()].into());
        assert_eq!(records.read(&record().file_name()), Some(record()));
    }

    #[test]
    fn failed_add_leaves_no_temporary_file() {
        let directory = tempfile::tempdir().unwrap();
        let records = records_in(directory.path());
        // rename(2) does not replace a directory by a file.
        std::fs::create_dir(directory.path().join(record().file_name())).unwrap();
        assert!(records.add(&record(), 1, |_| false).is_err());
        let files = files_beside_lock(directory.path());
        assert_eq!(files, [record().file_name()].into());
    }

    #[test]
    fn add_beside_an_unreadable_record_deletes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let records = records_in(directory.path());
        // open(2) of a socket fails for root too.
        let path = directory.path().join(record().file_name());
        let _socket = std::os::unix::net::UnixListener::bind(path).unwrap();
        assert!(records.add(&other_record(), 1, |_| true).is_err());
        let files = files_beside_lock(directory.path());
        assert_eq!(files, [record().file_name()].into());
    }

    #[test]
    fn removal_keeps_the_record_of_a_later_agent() {
        let directory = tempfile::tempdir().unwrap();
        let records = records_in(directory.path());
        records.add(&record(), 1, |_| false).unwrap();
        records.add(&later_record(), 1, |_| true).unwrap();
        records.remove(&record()).unwrap();
        let name = record().file_name();
        assert_eq!(records.read(&name), Some(later_record()));
        records.remove(&later_record()).unwrap();
        assert!(files_beside_lock(directory.path()).is_empty());
    }

    #[test]
    fn killed_process_leaves_no_lock() {
        const DIRECTORY: &str = "COLIBRI_TEST_RECORDS";
        if let Some(directory) = std::env::var_os(DIRECTORY) {
            let records = records_in(Path::new(&directory));
            add_until(&records, 2);
            let _lock = records.lock().unwrap();
            println!("\nlocked");
            // Ends with the test that started this process, at the latest.
            let _ = io::stdin().read_line(&mut String::new());
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("ops::records::tests::killed_process_leaves_no_lock")
            .env(DIRECTORY, directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        assert!(output.lines().any(|line| line.unwrap() == "locked"));
        let lock = File::open(directory.path().join(LOCK)).unwrap();
        assert!(matches!(lock.try_lock(), Err(TryLockError::WouldBlock)));
        child.kill().unwrap();
        child.wait().unwrap();
        let records = records_in(directory.path());
        records.add(&later_record(), 1, |_| true).unwrap();
        let files = files_beside_lock(directory.path());
        assert_eq!(files, [later_record().file_name()].into());
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
