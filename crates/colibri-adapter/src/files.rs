//! Requests of an agent for files. They are answered with the rights of this process, which runs in the agent's sandbox.

use std::io::{self, ErrorKind};
use std::path::Path;

use rustix::fs::OFlags;
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Maximum size of a file that is read or written, in bytes.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// Returns lines of a text file. `line` is the number of the first one, from 1; `limit` is the maximum number of lines.
///
/// # Errors
/// The file cannot be read, is not a regular file, is too large, or is not UTF-8.
pub(crate) async fn read(path: &Path, line: Option<u32>, limit: Option<u32>) -> io::Result<String> {
    let file = open(path, OpenOptions::new().read(true)).await?;
    let mut text = String::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_string(&mut text)
        .await?;
    check_size(text.len())?;
    if line.is_none() && limit.is_none() {
        return Ok(text);
    }
    let first = line.unwrap_or(1).saturating_sub(1) as usize;
    let limit = limit.map_or(usize::MAX, |limit| limit as usize);
    Ok(text.split_inclusive('\n').skip(first).take(limit).collect())
}

/// Writes a file.
///
/// # Errors
/// The file cannot be written, or the content is too large.
pub(crate) async fn write(path: &Path, content: &str) -> io::Result<()> {
    check_size(content.len())?;
    let mut file = open(path, OpenOptions::new().write(true).create(true)).await?;
    file.set_len(0).await?;
    file.write_all(content.as_bytes()).await?;
    file.flush().await
}

/// Opens a regular file. Never waits, unlike a plain open(2) of a FIFO without a peer.
async fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = options.custom_flags(nonblocking).open(path).await?;
    match file.metadata().await?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(
            ErrorKind::InvalidInput,
            "it is not a regular file",
        )),
    }
}

fn check_size(size: usize) -> io::Result<()> {
    if size as u64 > MAX_FILE_BYTES {
        let message = format!("it is larger than {} MiB", MAX_FILE_BYTES >> 20);
        return Err(io::Error::new(ErrorKind::FileTooLarge, message));
    }
    Ok(())
}
