//! Unpacks a tar stream into a directory.

use std::io::Read;

use crate::archive_path::ArchivePath;
use crate::error::TemplateError;
use crate::init::InitProgress;
use crate::input::{BoundedReader, ByteBudget, Cancellation};
use crate::tar_stream::{EntryKind, TarEntry, TarStream, read_error};
use crate::tree::{Attributes, Tree};

/// Prefix of a whiteout: the rest is the name of a file of lower layers that is removed (OCI image specification, layer.md).
const WHITEOUT: &[u8] = b".wh.";
/// Name of an opaque whiteout, which hides the content of its directory in lower layers.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Limits of what an archive may unpack to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnpackLimits {
    /// Maximum number of bytes of all layers, including headers of the archive.
    pub max_bytes: u64,
    /// Maximum number of files and directories of all layers.
    pub max_entries: u64,
}

impl Default for UnpackLimits {
    /// 16 GiB and a million entries: several times FreeBSD's largest image.
    fn default() -> Self {
        Self {
            max_bytes: 16 << 30,
            max_entries: 1_000_000,
        }
    }
}

/// What was unpacked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    /// Devices and FIFOs, which are not created.
    pub(crate) skipped_special: u64,
    /// Files whose setuid or setgid bits were removed.
    pub(crate) cleared_setuid: u64,
}

/// Unpacks archives into one tree.
pub(crate) struct Unpacker<'a> {
    tree: &'a Tree,
    keep_setuid: bool,
    /// Whether files get the owners of the archive.
    keep_owners: bool,
    max_entries: u64,
    budget: ByteBudget,
    cancellation: &'a Cancellation,
    progress: &'a dyn Fn(InitProgress<'_>),
    counts: Counts,
    layers: u32,
}

impl<'a> Unpacker<'a> {
    pub(crate) fn new(
        tree: &'a Tree,
        keep_setuid: bool,
        limits: UnpackLimits,
        cancellation: &'a Cancellation,
        progress: &'a dyn Fn(InitProgress<'_>),
    ) -> Self {
        Self {
            tree,
            keep_setuid,
            keep_owners: rustix::process::geteuid().is_root(),
            max_entries: limits.max_entries,
            budget: ByteBudget::new(limits.max_bytes),
            cancellation,
            progress,
            counts: Counts::default(),
            layers: 0,
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// Unpacks an archive of a whole system.
    pub(crate) fn archive(&mut self, input: impl Read, name: &str) -> Result<(), TemplateError> {
        let bounded = BoundedReader::new(input, &self.budget, self.cancellation);
        let mut stream = TarStream::new(bounded, name);
        while let Some(entry) = stream.next_entry()? {
            self.entry(&mut stream, entry)?;
        }
        Ok(())
    }

    /// Unpacks a layer of an image over those before it. `open` starts a new read of the decompressed layer.
    ///
    /// The layer is read twice: its whiteouts apply to lower layers only, but may follow the files of the layer itself.
    pub(crate) fn layer<R: Read>(
        &mut self,
        open: impl Fn() -> Result<R, TemplateError>,
        name: &str,
    ) -> Result<(), TemplateError> {
        if self.layers > 0 {
            // The second read counts, not this one.
            let budget = ByteBudget::new(self.budget.limit());
            let bounded = BoundedReader::new(open()?, &budget, self.cancellation);
            let mut stream = TarStream::new(bounded, name);
            while let Some(entry) = stream.next_entry()? {
                self.whiteout(&stream, &entry)?;
            }
        }
        self.layers += 1;
        let bounded = BoundedReader::new(open()?, &self.budget, self.cancellation);
        let mut stream = TarStream::new(bounded, name);
        while let Some(entry) = stream.next_entry()? {
            if !is_whiteout(&entry.path) {
                self.entry(&mut stream, entry)?;
            }
        }
        Ok(())
    }

    fn whiteout<R: Read>(
        &self,
        stream: &TarStream<'_, R>,
        entry: &TarEntry,
    ) -> Result<(), TemplateError> {
        let Some(name) = entry.path.split().map(|(_, name)| name.as_encoded_bytes()) else {
            return Ok(());
        };
        if name == OPAQUE {
            return self.tree.remove_content(&entry.path.parent());
        }
        match name.strip_prefix(WHITEOUT) {
            // Other names of the union file system that invented whiteouts.
            Some(rest) if rest.starts_with(WHITEOUT) => Ok(()),
            Some(b"" | b"." | b"..") => {
                Err(stream.refused(&entry.path.to_string(), "it is a whiteout of no file"))
            }
            Some(rest) => self.tree.remove(&entry.path.with_name(rest)),
            None => Ok(()),
        }
    }

    fn entry<R: Read>(
        &mut self,
        stream: &mut TarStream<'_, R>,
        entry: TarEntry,
    ) -> Result<(), TemplateError> {
        if self.counts.entries >= self.max_entries {
            let limit = self.max_entries;
            return Err(TemplateError::TooManyEntries { limit });
        }
        self.counts.entries += 1;
        let mut attributes = self.attributes(&entry);
        match &entry.kind {
            EntryKind::File => {
                let archive = stream.archive();
                let failed = |error: &std::io::Error| read_error(archive, error);
                self.counts.bytes += self.tree.file(&entry.path, &attributes, stream, failed)?;
            }
            EntryKind::Directory => {
                attributes.mtime = None;
                if entry.path.split().is_none() {
                    // The root is private until it is complete; see `target`.
                    return Ok(());
                }
                if !self.keep_owners {
                    // Later entries must be creatable in it.
                    attributes.mode |= 0o700;
                }
                self.tree.directory(&entry.path, &attributes)?;
            }
            EntryKind::Symlink(target) => self.tree.symlink(&entry.path, target, &attributes)?,
            EntryKind::HardLink(target) => self.tree.hard_link(&entry.path, target)?,
            EntryKind::Special => self.counts.skipped_special += 1,
        }
        (self.progress)(InitProgress::Unpacked {
            entries: self.counts.entries,
            bytes: self.counts.bytes,
        });
        Ok(())
    }

    /// Returns the attributes of a new file.
    fn attributes(&mut self, entry: &TarEntry) -> Attributes {
        let mut mode = entry.mode;
        if mode & 0o6000 != 0 && !self.keep_setuid {
            mode &= !0o6000;
            self.counts.cleared_setuid += u64::from(entry.kind == EntryKind::File);
        }
        Attributes {
            mode,
            owner: self.keep_owners.then_some((entry.uid, entry.gid)),
            mtime: Some(entry.mtime),
        }
    }
}

fn is_whiteout(path: &ArchivePath) -> bool {
    path.split()
        .is_some_and(|(_, name)| name.as_encoded_bytes().starts_with(WHITEOUT))
}
