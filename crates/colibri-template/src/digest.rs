//! SHA-256 digests, and lists of them.

use std::fmt;
use std::io::{self, Read};
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::TemplateError;

/// Maximum size of a list of checksums, in bytes.
const MAX_LIST_BYTES: u64 = 1 << 20;

/// A SHA-256 digest. Its text is `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// Returns the digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Returns the digits without `sha256:`.
    #[must_use]
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Finds the digest of the file `name` in a list: MANIFEST of a FreeBSD release (make-manifest.sh), or output of
    /// sha256(1) or sha256sum(1), as in CHECKSUM.SHA256.
    ///
    /// # Errors
    /// The list cannot be read, does not contain the name, or contains two digests of it.
    pub fn from_checksums(list: &Path, name: &str) -> Result<Self, TemplateError> {
        let failed = |problem: String| TemplateError::Checksums {
            file: list.to_owned(),
            problem,
        };
        let bytes = colibri_sys::regular_file::read(list, MAX_LIST_BYTES).map_err(|error| {
            failed(format!(
                "{error}; give a readable MANIFEST or CHECKSUM.SHA256"
            ))
        })?;
        let text = String::from_utf8_lossy(&bytes);
        let mut found = text.lines().filter_map(|line| listed(line, name));
        let first = found.next().ok_or_else(|| {
            failed(format!(
                "it contains no digest of {name}; give the list that was published with the file, or --digest"
            ))
        })?;
        match found.all(|other| other == first) {
            true => Ok(first),
            false => Err(failed(format!(
                "it contains two digests of {name}; give the right one with --digest"
            ))),
        }
    }
}

/// Returns the digest in a line, if the line is about the file `name`.
fn listed(line: &str, name: &str) -> Option<Digest> {
    let mut words = line.split_whitespace();
    let first = words.next()?;
    let second = words.next()?;
    let hex = if first == "SHA256" {
        let rest = line.strip_prefix("SHA256 (")?;
        rest.strip_prefix(name)?.strip_prefix(") = ")?
    } else if first == name {
        second
    } else if second.trim_start_matches('*') == name && words.next().is_none() {
        first
    } else {
        return None;
    };
    parse_hex(hex.trim())
}

fn parse_hex(hex: &str) -> Option<Digest> {
    let mut digest = [0; 32];
    let is_hex = hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    for (at, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * at..2 * at + 2).filter(|_| is_hex)?, 16).ok()?;
    }
    Some(Digest(digest))
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.strip_prefix("sha256:")
            .and_then(parse_hex)
            .ok_or_else(|| {
                format!("cannot use digest {text:?}: give sha256: and 64 hexadecimal digits")
            })
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

/// A reader that computes the digest of all bytes that were read.
pub(crate) struct HashingReader<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> HashingReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self {
            inner,
            hasher: Sha256::new(),
        }
    }

    /// Returns the digest of the bytes read so far.
    pub(crate) fn finish(self) -> Digest {
        Digest(self.hasher.finalize().into())
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn digest_has_one_text() {
        let digest = Digest::of(b"abc");
        assert_eq!(digest.to_string(), format!("sha256:{HEX}"));
        assert_eq!(digest.to_string().parse(), Ok(digest));
        let upper = format!("sha256:{}", HEX.to_uppercase());
        assert_eq!(upper.parse(), Ok(digest));
        for bad in [
            "",
            "sha256:",
            HEX,
            "sha512:00",
            &format!("sha256:{HEX}0"),
            &format!("sha256:+{}", &HEX[1..]),
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
        let mut reader = HashingReader::new(&b"abc"[..]);
        io::copy(&mut reader, &mut io::sink()).unwrap();
        assert_eq!(reader.finish(), digest);
    }

    #[test]
    fn checksum_lists_of_three_forms_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("list");
        let other = "0".repeat(64);
        let find = |text: &str| {
            std::fs::write(&list, text).unwrap();
            Digest::from_checksums(&list, "base.txz")
        };
        for text in [
            format!("base-dbg.txz\t{other}\t1\n base.txz\t{HEX}\t25000\tbase\t\"Base\"\ton\n"),
            format!("SHA256 (xbase.txz) = {other}\nSHA256 (base.txz) = {HEX}\n"),
            format!("{other}  base.txz.sig\n{HEX}  base.txz\n{HEX} *base.txz\n"),
        ] {
            assert_eq!(find(&text).unwrap(), Digest::of(b"abc"), "{text}");
        }
        for (text, problem) in [
            (format!("{HEX}  kernel.txz\n"), "no digest of base.txz"),
            ("base.txz\tnot-hex\n".to_owned(), "no digest of base.txz"),
            (
                format!("{HEX}  base.txz\n{other}  base.txz\n"),
                "two digests",
            ),
        ] {
            let error = find(&text).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
    }
}
