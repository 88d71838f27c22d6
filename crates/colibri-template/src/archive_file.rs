//! The archive of a template: a local or downloaded file.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use crate::archive_path::ArchivePath;
use crate::decompress::decompress;
use crate::digest::{Digest, HashingReader};
use crate::error::TemplateError;
use crate::input::{BoundedReader, ByteBudget, Cancellation};
use crate::oci;
use crate::tar_stream::{TarStream, read_error};
use crate::tree::{Attributes, Tree};

/// Maximum number of bytes that are read to find out what an archive contains.
const MAX_PROBE: u64 = 4 << 20;

/// An open archive.
#[derive(Debug)]
pub(crate) struct ArchiveFile {
    /// Path or URL, for messages.
    pub(crate) name: String,
    file: File,
    /// Digest of the file, if it is a private copy.
    digest: Option<Digest>,
}

impl ArchiveFile {
    /// Opens a local file.
    pub(crate) fn open(path: &Path) -> Result<Self, TemplateError> {
        let name = path.display().to_string();
        let file = colibri_sys::regular_file::open(path);
        let file = file.map_err(|error| TemplateError::Source {
            archive: name.clone(),
            problem: format!("{error}; give a file or an https URL"),
        })?;
        Ok(Self {
            name,
            file,
            digest: None,
        })
    }

    /// Returns an archive that was downloaded from a URL.
    pub(crate) fn downloaded(url: &str, file: File, digest: Digest) -> Self {
        Self {
            name: url.to_owned(),
            file,
            digest: Some(digest),
        }
    }

    /// Copies the archive to `path` of a private directory. Returns the copy with its digest.
    pub(crate) fn copied(
        self,
        storage: &Tree,
        path: &ArchivePath,
        max_bytes: u64,
        cancellation: &Cancellation,
    ) -> Result<Self, TemplateError> {
        let attributes = Attributes {
            mode: 0o600,
            owner: None,
            mtime: None,
        };
        let budget = ByteBudget::new(max_bytes);
        let bounded = BoundedReader::new(self.content()?, &budget, cancellation);
        let mut content = HashingReader::new(bounded);
        let failed = |error: &io::Error| read_error(&self.name, error);
        storage.file(path, &attributes, &mut content, failed)?;
        let digest = content.finish();
        let copy = storage.open(path)?.ok_or_else(|| {
            TemplateError::file("open", path.to_string())(io::ErrorKind::NotFound)
        })?;
        Ok(Self {
            name: self.name,
            file: copy,
            digest: Some(digest),
        })
    }

    /// Returns the digest of a private copy; `None` for the caller's file, which its owner can change.
    pub(crate) fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Returns the file, from its start. There is one reader at a time.
    fn content(&self) -> Result<&File, TemplateError> {
        let seek = (&self.file).seek(SeekFrom::Start(0));
        seek.map_err(|error| read_error(&self.name, &error))?;
        Ok(&self.file)
    }

    /// Returns the decompressed content, from its start. There is one reader at a time.
    pub(crate) fn decompressed(&self) -> Result<Box<dyn Read + '_>, TemplateError> {
        decompress(self.content()?).map_err(|error| read_error(&self.name, &error))
    }

    /// Returns whether the archive contains an OCI image layout: its first entry has a name of the layout.
    pub(crate) fn is_image(&self, cancellation: &Cancellation) -> Result<bool, TemplateError> {
        let budget = ByteBudget::new(MAX_PROBE);
        let bounded = BoundedReader::new(self.decompressed()?, &budget, cancellation);
        let mut stream = TarStream::new(bounded, &self.name);
        while let Some(entry) = stream.next_entry()? {
            let components = ArchivePath::components(&entry.path);
            if let Some(first) = components.first() {
                return Ok(oci::TOP_LEVEL.iter().any(|name| *name == first));
            }
        }
        Err(TemplateError::Archive {
            archive: self.name.clone(),
            problem: "it is empty".to_owned(),
        })
    }
}
