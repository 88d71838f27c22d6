#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod accounts;
mod archive_file;
mod archive_path;
mod command;
mod decompress;
mod digest;
mod download;
mod error;
mod init;
mod input;
mod oci;
mod staging;
mod tar_stream;
mod target;
mod tree;
mod unpack;
mod zfs;

pub use accounts::AgentUserName;
pub use archive_path::ArchivePath;
pub use digest::Digest;
pub use error::TemplateError;
pub use init::{ArchiveSource, InitOptions, InitProgress, TemplateReport, init};
pub use input::Cancellation;
pub use unpack::UnpackLimits;
pub use zfs::DatasetName;
