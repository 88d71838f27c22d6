//! Errors of the creation of a template.

use std::io;
use std::path::{Path, PathBuf};

use crate::digest::Digest;

/// A template cannot be created. Nothing of it is left, unless the message names what is left.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The directory of the template cannot be used.
    #[error("cannot create template {directory}: {problem}")]
    Target {
        /// The directory.
        directory: PathBuf,
        /// Why, and a hint.
        problem: String,
    },
    /// The archive cannot be obtained.
    #[error("cannot read {archive}: {problem}")]
    Source {
        /// Path or URL of the archive.
        archive: String,
        /// Why, and a hint.
        problem: String,
    },
    /// The archive is not self-verifying, and the caller passed no digest.
    #[error(
        "cannot verify {archive}: no digest is given; pass --digest sha256:HEX with the value that its publisher names, or --checksums with the MANIFEST of the release"
    )]
    NoDigest {
        /// Path or URL of the archive.
        archive: String,
    },
    /// The bytes are not those that the digest names.
    #[error(
        "cannot use {what}: its digest is {found}, not {expected}; get the file again, or check which file the digest belongs to"
    )]
    DigestMismatch {
        /// The file or blob.
        what: String,
        /// The digest that was requested.
        expected: Digest,
        /// The digest of the bytes.
        found: Digest,
    },
    /// The list of checksums does not name the archive.
    #[error("cannot use checksums {file}: {problem}")]
    Checksums {
        /// The list.
        file: PathBuf,
        /// Why, and a hint.
        problem: String,
    },
    /// The archive is damaged, or an entry of it is refused.
    #[error("cannot unpack {entry:?} of {archive}: {problem}; use another archive")]
    Entry {
        /// Path or URL of the archive, or digest of the layer.
        archive: String,
        /// Name of the entry, as in the archive.
        entry: String,
        /// Why.
        problem: String,
    },
    /// The archive cannot be decoded.
    #[error(
        "cannot unpack {archive}: {problem}; get it again, or use a tar archive or an OCI image layout in a tar archive"
    )]
    Archive {
        /// Path or URL of the archive, or digest of the layer.
        archive: String,
        /// Why.
        problem: String,
    },
    /// The archive is an OCI image that cannot be used.
    #[error("cannot use image {archive}: {problem}")]
    Image {
        /// Path or URL of the image.
        archive: String,
        /// Why, and a hint.
        problem: String,
    },
    /// The unpacked archive exceeds the limit of bytes.
    #[error(
        "cannot unpack more than {limit} bytes; if the archive is trusted, raise the limit with --max-size"
    )]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// The archive exceeds the limit of entries.
    #[error("cannot unpack more than {limit} files and directories; use a smaller archive")]
    TooManyEntries {
        /// The limit.
        limit: u64,
    },
    /// A symbolic link or a file is on the path of an entry.
    #[error(
        "cannot use {path} of the archive: {component:?} in it is not a directory; use an archive without entries below symbolic links"
    )]
    NotADirectory {
        /// The path, from the root of the template.
        path: String,
        /// The component that is not a directory.
        component: String,
    },
    /// An operation on a file failed.
    #[error(
        "cannot {operation} {path}: {source}; check the free space and the mode of its directory"
    )]
    File {
        /// What was done.
        operation: &'static str,
        /// The file; relative to the template if it is inside.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The unpacked system cannot be prepared.
    #[error("cannot prepare the template: {problem}")]
    Prepare {
        /// Why, and a hint.
        problem: String,
    },
    /// An external program failed.
    #[error("cannot run {command}: {problem}")]
    Command {
        /// The command line.
        command: String,
        /// Its exit status and output, or why it cannot be started, and a hint.
        problem: String,
    },
    /// The caller cancelled the creation.
    #[error("cannot finish the template: cancelled; run the command again")]
    Cancelled,
}

impl TemplateError {
    /// Returns a function that wraps an error of a file operation.
    pub(crate) fn file<E: Into<io::Error>>(
        operation: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::File {
            operation,
            path: path.as_ref().to_owned(),
            source: source.into(),
        }
    }

    pub(crate) fn target(directory: &Path, problem: impl Into<String>) -> Self {
        Self::Target {
            directory: directory.to_owned(),
            problem: problem.into(),
        }
    }

    pub(crate) fn prepare(problem: impl Into<String>) -> Self {
        Self::Prepare {
            problem: problem.into(),
        }
    }
}
