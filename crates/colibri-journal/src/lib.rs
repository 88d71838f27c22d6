#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod error;
mod index;
mod reader;
mod segment;
mod writer;

pub use error::{AppendError, JournalError};
pub use reader::{Chunk, JournalReader};
pub use writer::{Fsync, JournalOptions, JournalWriter};
