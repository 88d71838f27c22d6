//! A reader of tar archives: ustar, pax (POSIX) and GNU long names. Everything that it keeps in memory has a limit.
//!
//! The crate `tar` parses header blocks. Its iterator is not used: it reads extension headers of any length into memory.

use std::io::{self, Read};

use tar::{EntryType, Header};

use crate::archive_path::ArchivePath;
use crate::error::TemplateError;
use crate::input::stop_error;

/// Size of a block, in bytes.
const BLOCK: usize = 512;
/// Maximum size of an extension header (pax records, GNU long name), in bytes.
const MAX_EXTENSION: u64 = 1 << 20;
/// Maximum length of the target of a symbolic link, in bytes.
const MAX_LINK: usize = 4096;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// A regular file; its content follows.
    File,
    Directory,
    /// A symbolic link with this target, which is not interpreted.
    Symlink(Vec<u8>),
    /// A hard link to another entry.
    HardLink(ArchivePath),
    /// A device or FIFO.
    Special,
}

/// An entry of an archive.
#[derive(Debug, Clone)]
pub(crate) struct TarEntry {
    pub(crate) path: ArchivePath,
    pub(crate) kind: EntryKind,
    /// Permission bits with setuid, setgid and sticky bit.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Modification time in seconds since 1970.
    pub(crate) mtime: i64,
    /// Length of the content in bytes; 0 unless the entry is a file.
    pub(crate) size: u64,
}

/// The records of a pax extended header that this reader applies.
#[derive(Debug, Default)]
struct PaxRecords {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<i64>,
    sparse: bool,
}

/// Reads the entries of an archive in order.
pub(crate) struct TarStream<'a, R> {
    input: R,
    /// Name of the archive, for messages.
    archive: &'a str,
    /// Bytes of the current entry's content that were not read yet.
    content: u64,
    /// Bytes of padding after the content.
    padding: u64,
}

impl<'a, R: Read> TarStream<'a, R> {
    pub(crate) fn new(input: R, archive: &'a str) -> Self {
        Self {
            input,
            archive,
            content: 0,
            padding: 0,
        }
    }

    /// Returns the next entry, or `None` at the end of the archive. Skips what was not read of the previous content.
    pub(crate) fn next_entry(&mut self) -> Result<Option<TarEntry>, TemplateError> {
        let mut pax = PaxRecords::default();
        let (mut long_name, mut long_link) = (None, None);
        loop {
            self.skip_content()?;
            let mut block = [0; BLOCK];
            self.read_exact(&mut block)?;
            if block == [0; BLOCK] {
                // The decoder verifies its checksum at the end of its input.
                let drained = io::copy(&mut self.input, &mut io::sink());
                drained.map_err(|error| self.failed(&error))?;
                return Ok(None);
            }
            let header = Header::from_byte_slice(&block);
            if header.cksum().ok() != Some(checksum(&block)) {
                return Err(self.damaged("a header has a wrong checksum"));
            }
            let name = String::from_utf8_lossy(&header.path_bytes()).into_owned();
            let size = header.entry_size();
            let size = size.map_err(|_| self.refused(&name, "its size is not a number"))?;
            match header.entry_type() {
                EntryType::XGlobalHeader => drop(self.extension(&name, size)?),
                EntryType::XHeader => {
                    let records = self.extension(&name, size)?;
                    pax = parse_pax(&records).map_err(|problem| self.refused(&name, &problem))?;
                }
                EntryType::GNULongName => {
                    long_name = Some(until_nul(self.extension(&name, size)?));
                }
                EntryType::GNULongLink => {
                    long_link = Some(until_nul(self.extension(&name, size)?));
                }
                _ => {
                    let raw_name = pax.path.take().or(long_name);
                    let raw_link = pax.link.take().or(long_link);
                    let raw_name = raw_name.unwrap_or_else(|| header.path_bytes().into_owned());
                    let entry = entry(header, &raw_name, raw_link, &pax);
                    let shown = String::from_utf8_lossy(&raw_name);
                    let entry = entry.map_err(|problem| self.refused(&shown, &problem))?;
                    self.begin_content(entry.size);
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// Reads an extension header.
    fn extension(&mut self, name: &str, size: u64) -> Result<Vec<u8>, TemplateError> {
        if size > MAX_EXTENSION {
            let problem = format!("an extension header is longer than {MAX_EXTENSION} bytes");
            return Err(self.refused(name, &problem));
        }
        self.begin_content(size);
        let mut bytes = Vec::new();
        let read = self.read_to_end(&mut bytes);
        read.map_err(|error| self.failed(&error))?;
        Ok(bytes)
    }

    fn begin_content(&mut self, size: u64) {
        let block = BLOCK as u64;
        self.padding = (block - size % block) % block;
        self.content = size;
    }

    fn skip_content(&mut self) -> Result<(), TemplateError> {
        let rest = self.content.saturating_add(self.padding);
        (self.content, self.padding) = (0, 0);
        let skipped = io::copy(&mut (&mut self.input).take(rest), &mut io::sink());
        match skipped {
            Ok(count) if count == rest => Ok(()),
            Ok(_) => Err(self.damaged("it ends within an entry")),
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn read_exact(&mut self, block: &mut [u8]) -> Result<(), TemplateError> {
        self.input
            .read_exact(block)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => self.damaged("it ends without an end marker"),
                _ => self.failed(&error),
            })
    }

    /// Returns the name of the archive.
    pub(crate) fn archive(&self) -> &'a str {
        self.archive
    }

    fn failed(&self, error: &io::Error) -> TemplateError {
        read_error(self.archive, error)
    }

    fn damaged(&self, problem: &str) -> TemplateError {
        TemplateError::Archive {
            archive: self.archive.to_owned(),
            problem: problem.to_owned(),
        }
    }

    /// Returns the error for an entry that is refused.
    pub(crate) fn refused(&self, entry: &str, problem: &str) -> TemplateError {
        TemplateError::Entry {
            archive: self.archive.to_owned(),
            entry: entry.chars().take(256).collect(),
            problem: problem.to_owned(),
        }
    }
}

/// Returns the error for a failed read of an archive.
pub(crate) fn read_error(archive: &str, error: &io::Error) -> TemplateError {
    stop_error(error).unwrap_or_else(|| TemplateError::Archive {
        archive: archive.to_owned(),
        problem: error.to_string(),
    })
}

/// Reads the content of the current entry.
impl<R: Read> Read for TarStream<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.content)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.input.read(&mut buffer[..wanted])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.content -= count as u64;
        Ok(count)
    }
}

/// Returns the entry that a header and its extensions describe; the error is the problem.
fn entry(
    header: &Header,
    name: &[u8],
    link: Option<Vec<u8>>,
    pax: &PaxRecords,
) -> Result<TarEntry, String> {
    let link = || {
        let from_header = || header.link_name_bytes().map(std::borrow::Cow::into_owned);
        let link = link.or_else(from_header).filter(|link| !link.is_empty());
        let link = link.ok_or_else(|| "it is a link without a target".to_owned())?;
        match link.len() > MAX_LINK || link.contains(&0) {
            true => Err("the target of the link is too long or contains a NUL byte".to_owned()),
            false => Ok(link),
        }
    };
    let kind = match header.entry_type() {
        _ if pax.sparse => return Err("it is sparse, which is not supported".to_owned()),
        EntryType::GNUSparse => return Err("it is sparse, which is not supported".to_owned()),
        // Before POSIX, a name with a trailing slash was a directory.
        EntryType::Regular if header.as_ustar().is_none() && name.ends_with(b"/") => {
            EntryKind::Directory
        }
        EntryType::Regular | EntryType::Continuous => EntryKind::File,
        EntryType::Directory => EntryKind::Directory,
        EntryType::Symlink => EntryKind::Symlink(link()?),
        EntryType::Link => {
            let target = ArchivePath::from_entry(&link()?);
            EntryKind::HardLink(target.map_err(|problem| format!("as a hard link: {problem}"))?)
        }
        EntryType::Char | EntryType::Block | EntryType::Fifo => EntryKind::Special,
        other => {
            return Err(format!(
                "its type {:?} is not supported",
                char::from(other.as_byte())
            ));
        }
    };
    let number = |field: io::Result<u64>, name: &str| {
        field.map_err(|_| format!("its {name} is not a number"))
    };
    let size = match pax.size {
        Some(size) => size,
        None => number(header.entry_size(), "size")?,
    };
    // Whether content follows such an entry differs between tar programs.
    if kind != EntryKind::File && size != 0 {
        return Err("it has content, but is not a file".to_owned());
    }
    let id = |from_pax: Option<u64>, field: io::Result<u64>, name: &str| {
        let value = match from_pax {
            Some(value) => value,
            None => number(field, name)?,
        };
        // The largest number means "unchanged" in chown(2).
        u32::try_from(value)
            .ok()
            .filter(|value| *value != u32::MAX)
            .ok_or_else(|| format!("its {name} {value} is too large"))
    };
    let mode = header.mode().map_err(|_| "its mode is not a number")?;
    let header_time = || i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0);
    Ok(TarEntry {
        path: ArchivePath::from_entry(name)?,
        kind,
        mode: mode & 0o7777,
        uid: id(pax.uid, header.uid(), "uid")?,
        gid: id(pax.gid, header.gid(), "gid")?,
        mtime: pax.mtime.unwrap_or_else(header_time),
        size,
    })
}

/// Returns the sum of the bytes of a header, with its checksum field as spaces (pax(1), "ustar Interchange Format").
fn checksum(block: &[u8; BLOCK]) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    sum(&block[..148]) + 8 * u32::from(b' ') + sum(&block[156..])
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

/// Parses the records of a pax header: `LENGTH KEY=VALUE\n`. Values may contain any byte.
fn parse_pax(mut bytes: &[u8]) -> Result<PaxRecords, String> {
    let malformed = || "its pax header is malformed".to_owned();
    let mut records = PaxRecords::default();
    while !bytes.is_empty() {
        let space = bytes.iter().take(20).position(|byte| *byte == b' ');
        let space = space.ok_or_else(malformed)?;
        let length: usize = text(&bytes[..space]).ok_or_else(malformed)?;
        let record = bytes.get(space + 1..length).ok_or_else(malformed)?;
        let record = record.strip_suffix(b"\n").ok_or_else(malformed)?;
        bytes = &bytes[length..];
        let equals = record.iter().position(|byte| *byte == b'=');
        let (key, value) = record.split_at(equals.ok_or_else(malformed)?);
        let value = &value[1..];
        match key {
            b"path" => records.path = Some(value.to_vec()),
            b"linkpath" => records.link = Some(value.to_vec()),
            b"size" => records.size = Some(text(value).ok_or_else(malformed)?),
            b"uid" => records.uid = Some(text(value).ok_or_else(malformed)?),
            b"gid" => records.gid = Some(text(value).ok_or_else(malformed)?),
            b"mtime" => {
                let seconds = value.split(|byte| *byte == b'.').next().unwrap_or_default();
                records.mtime = Some(text(seconds).ok_or_else(malformed)?);
            }
            key if key.starts_with(b"GNU.sparse.") => records.sparse = true,
            // Extended attributes, file flags, access lists and names of users are not applied.
            _ => {}
        }
    }
    Ok(records)
}

fn text<T: std::str::FromStr>(bytes: &[u8]) -> Option<T> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a pax header entry with these records, and then an empty file.
    fn with_pax(records: &[u8]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        header.set_size(records.len() as u64);
        header.set_cksum();
        builder.append(&header, records).unwrap();
        let mut header = Header::new_ustar();
        header.set_path("short").unwrap();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        header.set_cksum();
        builder.append(&header, io::empty()).unwrap();
        builder.into_inner().unwrap()
    }

    fn first(archive: &[u8]) -> Result<Option<TarEntry>, TemplateError> {
        TarStream::new(archive, "archive").next_entry()
    }

    #[test]
    fn pax_records_override_the_header() {
        let binary = b"25 SCHILY.xattr.x=\n\0\nabc\n";
        let records = [
            &b"20 path=dir/long nm\n16 uid=70000000\n22 mtime=1700000000.5\n"[..],
            binary,
        ]
        .concat();
        let entry = first(&with_pax(&records)).unwrap().unwrap();
        assert_eq!(entry.path.to_string(), "/dir/long nm");
        assert_eq!((entry.uid, entry.mtime), (70_000_000, 1_700_000_000));
    }

    #[test]
    fn malformed_pax_records_are_refused() {
        for records in [
            &b"x"[..],
            b"9 path=ab",
            b"99 path=a\n",
            b"0 path=a\n",
            b"1 \n",
            b"5 ab\n",
            b"13 size=-123\n",
            b"19 uid=4294967295\n",
            b"99999999999999999999 path=a\n",
            b"22 GNU.sparse.major=1\n",
            b"12 path=/etc\n",
            b"14 path=a/../b\n",
        ] {
            let result = first(&with_pax(records));
            assert!(
                matches!(result, Err(TemplateError::Entry { .. })),
                "{}: {result:?}",
                String::from_utf8_lossy(records)
            );
        }
    }

    #[test]
    fn oversized_extension_is_refused_without_reading_it() {
        for kind in [
            EntryType::XHeader,
            EntryType::GNULongName,
            EntryType::XGlobalHeader,
        ] {
            let mut header = Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(1 << 40);
            header.set_cksum();
            let error = first(header.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("longer than 1048576 bytes"), "{error}");
        }
    }

    #[test]
    fn damaged_archive_is_an_error() {
        let whole = with_pax(b"16 uid=70000000\n");
        assert!(first(&whole).is_ok());
        for end in [0, 100, 512, 700, 1024, 1300] {
            assert!(first(&whole[..end]).is_err(), "{end}");
        }
        let mut flipped = whole.clone();
        flipped[1024] ^= 1;
        assert!(
            first(&flipped)
                .unwrap_err()
                .to_string()
                .contains("checksum")
        );
        let without_end = &whole[..1536];
        let mut stream = TarStream::new(without_end, "archive");
        stream.next_entry().unwrap().unwrap();
        assert!(stream.next_entry().is_err());
    }
}
