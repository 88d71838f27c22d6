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

/// Maximum number of bytes that are read to find out what an archive contains.
const MAX_PROBE: u64 = 4 << 20;

/// An open archive.
#[derive(Debug)]
pub(crate) struct ArchiveFile {
    /// Path or URL, for messages.
    pub(crate) name: String,
    file: File,
    /// Digest of the file, if it was computed.
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

    /// Returns the digest of the file.
    pub(crate) fn digest(&mut self, cancellation: &Cancellation) -> Result<Digest, TemplateError> {
        if let Some(digest) = self.digest {
            return Ok(digest);
        }
        let budget = ByteBudget::new(u64::MAX);
        let bounded = BoundedReader::new(self.content()?, &budget, cancellation);
        let mut reader = HashingReader::new(bounded);
        io::copy(&mut reader, &mut io::sink()).map_err(|error| read_error(&self.name, &error))?;
        let digest = reader.finish();
        self.digest = Some(digest);
        Ok(digest)
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
