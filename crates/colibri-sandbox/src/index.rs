//! The paths in an index of git (gitformat-index(5)). git trusts them when it reads an index: `git checkout -- .` would write a file
//! `../.bashrc`, or `.git/hooks/post-checkout` and execute it. Pure.

/// Length of an entry before the name of its object, and of its flags after it, in bytes.
const FIXED: usize = 40;
const FLAGS: usize = 2;
/// Flag of an entry with a second pair of flags.
const EXTENDED: u8 = 0x40;
/// Maximum length of a path, in bytes (PATH_MAX).
const MAX_PATH: usize = 4096;

/// Returns why an index must not be used; `None` if all its paths are in the working tree. `hash` is the length of a name of an
/// object.
pub(crate) fn problem(bytes: &[u8], hash: usize) -> Option<String> {
    let mut path = Vec::new();
    match read(bytes, hash, &mut path) {
        Ok(()) => None,
        Err(Problem::Form) => Some("it has an unknown form".to_owned()),
        Err(Problem::Path) => Some(format!(
            "git would write to {:?}",
            String::from_utf8_lossy(&path)
        )),
    }
}

enum Problem {
    Form,
    Path,
}

/// Reads all entries; `path` is the last one.
fn read(bytes: &[u8], hash: usize, path: &mut Vec<u8>) -> Result<(), Problem> {
    let number = |at: usize| -> Option<u32> {
        Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
    };
    if bytes.get(..4) != Some(b"DIRC") {
        return Err(Problem::Form);
    }
    let version = number(4).filter(|version| (2..=4).contains(version));
    let version = version.ok_or(Problem::Form)?;
    let count = number(8).ok_or(Problem::Form)?;
    let mut at = 12;
    for _ in 0..count {
        let start = at;
        at += FIXED + hash;
        let flags = *bytes.get(at).ok_or(Problem::Form)?;
        at += FLAGS;
        if flags & EXTENDED != 0 && version >= 3 {
            at += FLAGS;
        }
        match version {
            4 => {
                let (removed, length) = varint(bytes.get(at..).unwrap_or_default())?;
                at += length;
                let kept = path.len().checked_sub(removed).ok_or(Problem::Form)?;
                path.truncate(kept);
            }
            _ => path.clear(),
        }
        let rest = bytes.get(at..).ok_or(Problem::Form)?;
        let end = rest.iter().take(MAX_PATH).position(|byte| *byte == 0);
        let end = end.ok_or(Problem::Form)?;
        path.extend_from_slice(rest.get(..end).unwrap_or_default());
        at += end + 1;
        if version < 4 {
            // Zeros up to a multiple of eight.
            at = start + (at - start).next_multiple_of(8);
        }
        if path.len() > MAX_PATH || !is_in_tree(path) {
            return Err(Problem::Path);
        }
    }
    Ok(())
}

/// Reads a number of variable length: the value and its length in bytes.
fn varint(bytes: &[u8]) -> Result<(usize, usize), Problem> {
    let mut value = 0_usize;
    for (number, byte) in bytes.iter().take(8).enumerate() {
        if number > 0 {
            value += 1;
        }
        value = (value << 7) | usize::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Ok((value, number + 1));
        }
    }
    Err(Problem::Form)
}

/// Returns whether git itself would add this path.
fn is_in_tree(path: &[u8]) -> bool {
    let is_plain =
        |part: &[u8]| !matches!(part, b"" | b"." | b"..") && !part.eq_ignore_ascii_case(b".git");
    // A sparse index has directories, which end in a slash.
    let path = path.strip_suffix(b"/").unwrap_or(path);
    // An index that changes entries of a shared one leaves their paths out.
    path.is_empty() || path.split(|byte| *byte == b'/').all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns an index of version 2, 3 or 4 with these paths.
    fn index(version: u32, hash: usize, paths: &[&str]) -> Vec<u8> {
        let mut bytes = b"DIRC".to_vec();
        bytes.extend(version.to_be_bytes());
        bytes.extend(u32::try_from(paths.len()).unwrap().to_be_bytes());
        let mut previous = "";
        for path in paths {
            let start = bytes.len();
            bytes.extend(vec![1; FIXED + hash]);
            match version {
                2 => bytes.extend([0, 0]),
                _ => bytes.extend([EXTENDED, 0, 0, 0]),
            }
            if version == 4 {
                let common = path
                    .bytes()
                    .zip(previous.bytes())
                    .take_while(|(a, b)| a == b);
                let common = common.count();
                let removed = previous.len() - common;
                if removed > 127 {
                    bytes.push(0x80 | u8::try_from((removed >> 7) - 1).unwrap());
                }
                bytes.push(u8::try_from(removed & 0x7f).unwrap());
                bytes.extend(path[common..].bytes());
                bytes.push(0);
            } else {
                bytes.extend(path.bytes());
                let length = (bytes.len() - start + 1).next_multiple_of(8);
                bytes.resize(start + length, 0);
            }
            previous = path;
        }
        bytes.extend(vec![7; hash]);
        bytes
    }

    #[test]
    fn paths_out_of_the_working_tree_are_found() {
        let long = "x".repeat(200);
        for (version, hash) in [(2, 20), (3, 20), (4, 20), (2, 32), (4, 32)] {
            let good = ["", ".gitignore", "a/.gitx", "a/b", &long, "z/"];
            assert_eq!(
                problem(&index(version, hash, &good), hash),
                None,
                "{version}"
            );
            for bad in [
                "../x",
                "a/../../x",
                ".git/hooks/x",
                "a/.GIT/config",
                "/etc/x",
                "a//b",
                "./x",
            ] {
                let found = problem(&index(version, hash, &["a/a", bad]), hash);
                assert!(found.unwrap().contains(bad), "{version} {bad}");
            }
            let bytes = index(version, hash, &good);
            for length in 0..bytes.len() - hash - 8 {
                let _ = problem(&bytes[..length], hash);
            }
            assert!(problem(&bytes[..40], hash).is_some());
        }
        assert!(problem(b"", 20).is_some());
        assert!(problem(b"DIRC\0\0\0\x05\0\0\0\0", 20).is_some());
    }
}
