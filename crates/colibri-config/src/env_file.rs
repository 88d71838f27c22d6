//! Files of variables, as docker and dotenv have them: `NAME=VALUE` lines, comments, quotes.
//!
//! Values are secrets, so no error holds one; and `$` in a value is a character like any other (see
//! docs/decisions/0019).

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use colibri_sys::ownership::Ownership;
use colibri_sys::regular_file;

/// More than any environment holds (execve(2): a string has at most 128 KiB on Linux).
const MAX_BYTES: u64 = 1 << 20;

/// Why a file of variables cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnvFileError {
    /// It cannot be read.
    #[error("environment file {path} cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line cannot be understood. It is not shown: it may hold a secret.
    #[error("environment file {path}:{line}: {problem}")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong, and what to do.
        problem: &'static str,
    },
    /// Others can read it.
    #[error(
        "environment file {path} can be read by others (mode {mode:04o}); run: chmod 600 {path}"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
}

/// Who may be able to read a file of variables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readers {
    /// Only its owner.
    Owner,
    /// Anybody.
    Anybody,
}

/// Reads a file of variables.
///
/// # Errors
/// It cannot be read, a line is wrong, or more can read it than should.
pub fn read(path: &Path, readers: Readers) -> Result<BTreeMap<String, String>, EnvFileError> {
    let failed = |source| EnvFileError::Read {
        path: path.to_owned(),
        source,
    };
    let file = regular_file::open(path).map_err(failed)?;
    let ownership = Ownership::from(&file.metadata().map_err(failed)?);
    if readers == Readers::Owner && ownership.is_accessible_by_others() {
        return Err(EnvFileError::Open {
            path: path.to_owned(),
            mode: ownership.mode,
        });
    }
    let bytes = regular_file::read_open(&file, MAX_BYTES).map_err(failed)?;
    parse(&bytes).map_err(|(line, problem)| EnvFileError::Line {
        path: path.to_owned(),
        line,
        problem,
    })
}

/// The variables of such a text; of two with one name the later counts. An error is a line, from 1, and what is
/// wrong there.
///
/// # Errors
/// The first line that is wrong.
pub fn parse(bytes: &[u8]) -> Result<BTreeMap<String, String>, (usize, &'static str)> {
    let lines_before = |at: usize| {
        let before = bytes.get(..at).unwrap_or(bytes);
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    };
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = lines_before(error.valid_up_to());
        (line, "it is not UTF-8")
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut variables = BTreeMap::new();
    let mut rest = text;
    while !rest.is_empty() {
        let wrong = |problem| {
            (
                1 + text.matches('\n').count() - rest.matches('\n').count(),
                problem,
            )
        };
        let line = rest.split('\n').next().unwrap_or_default();
        let behind = |length: usize| rest.get(length..).unwrap_or_default();
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            rest = behind(line.len() + 1);
            continue;
        }
        let Some((name, value)) = line.split_once('=') else {
            return Err(wrong(
                "there is no '=' in it; write NAME=VALUE (for a variable of your own environment: --secret NAME)",
            ));
        };
        let before_value = line.len() - value.len();
        let name = name.trim();
        let name = name.strip_prefix("export ").map_or(name, str::trim_start);
        if name.is_empty() || name.contains(char::is_whitespace) || name.contains(['\0', '"', '\''])
        {
            return Err(wrong(
                "what is before the '=' is no name of a variable; write NAME=VALUE",
            ));
        }
        let indent = value.len() - value.trim_start().len();
        // A quoted value may go over several lines.
        let (value, taken) = match value.trim_start().chars().next() {
            Some(quote @ ('\'' | '"')) => {
                let inside = behind(before_value + indent + 1);
                let (value, length) = quoted(inside, quote).ok_or_else(|| {
                    wrong("the quote of the value is not closed; close it, or put the value into quotes of the other kind")
                })?;
                let after = inside.get(length..).unwrap_or_default();
                let trailing = after.split('\n').next().unwrap_or_default();
                let comment = trailing.trim_start();
                if !(comment.is_empty()
                    || (comment.starts_with('#') && comment.len() < trailing.len()))
                {
                    return Err(wrong(
                        "something follows the closing quote; put all of the value into the quotes",
                    ));
                }
                (value, before_value + indent + 1 + length + trailing.len())
            }
            _ => (unquoted(value).to_owned(), line.len()),
        };
        if value.contains('\0') {
            return Err(wrong("the value holds a NUL byte; remove it"));
        }
        variables.insert(name.to_owned(), value);
        rest = behind(taken + 1);
    }
    Ok(variables)
}

/// Up to a comment, which a space sets off, without space around.
fn unquoted(value: &str) -> &str {
    let comment = value.match_indices('#').map(|(at, _)| at).find(|at| {
        value
            .get(..*at)
            .is_some_and(|before| before.is_empty() || before.ends_with([' ', '\t']))
    });
    value
        .get(..comment.unwrap_or(value.len()))
        .unwrap_or(value)
        .trim()
}

/// The value up to the closing quote, and how long it is with that. Between double quotes `\n`, `\r`, `\t`, `\"`,
/// `\\` and `\$` are one character; any other backslash is one itself.
fn quoted(text: &str, quote: char) -> Option<(String, usize)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        if c == quote {
            return Some((value, at + c.len_utf8()));
        }
        if c != '\\' || quote == '\'' {
            value.push(c);
            continue;
        }
        match characters.next()?.1 {
            'n' => value.push('\n'),
            'r' => value.push('\r'),
            't' => value.push('\t'),
            same @ ('"' | '\\' | '$') => value.push(same),
            other => value.extend(['\\', other]),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt;

    fn one(text: &str) -> Result<String, (usize, &'static str)> {
        let mut variables = parse(text.as_bytes())?;
        assert_eq!(variables.len(), 1, "{text:?}");
        Ok(variables.remove("A").unwrap())
    }

    #[test]
    fn values_are_read_as_people_expect_them() {
        for (text, value) in [
            ("A=b", "b"),
            ("A=b\n", "b"),
            ("A=b\r\n", "b"),
            ("\u{feff}A=b", "b"),
            ("export A=b", "b"),
            ("  A = b  ", "b"),
            ("A=", ""),
            ("A=\"\"", ""),
            ("A=b=c==", "b=c=="),
            ("A=with spaces inside", "with spaces inside"),
            ("A=b # comment", "b"),
            ("A=b#c", "b#c"),
            ("A= # comment", ""),
            ("A=#c", ""),
            ("# comment\n\n  # another\nA=b", "b"),
            ("A='b # c'", "b # c"),
            ("A=' b '", " b "),
            ("A='b\\n$C'", "b\\n$C"),
            ("A=\"b\\nc\\t\\\"\\\\\\$\"", "b\nc\t\"\\$"),
            ("A=\"\\d+ ${HOME}\"", "\\d+ ${HOME}"),
            ("A=pa$$word$HOME`x`", "pa$$word$HOME`x`"),
            ("A=\"b\" # comment", "b"),
            (
                "A=\"-----BEGIN-----\nx=y\n# no comment\n-----END-----\"\n",
                "-----BEGIN-----\nx=y\n# no comment\n-----END-----",
            ),
            ("A=it's", "it's"),
            ("A=grüße", "grüße"),
            ("A=1\nA=2", "2"),
        ] {
            assert_eq!(one(text), Ok(value.to_owned()), "{text:?}");
        }
        assert_eq!(parse(b"").unwrap(), BTreeMap::new());
    }

    #[test]
    fn a_wrong_line_is_named_by_its_number_and_not_shown() {
        for (text, line, part) in [
            (&b"A=b\ns3cret\n"[..], 2, "no '='"),
            (b"\n\n=s3cret", 3, "no name"),
            (b"A B=s3cret", 1, "no name"),
            (b"\"A\"=s3cret", 1, "no name"),
            (b"A='s3cret", 1, "not closed"),
            (b"X='a\nb'\nA=\"s3cret\\\"", 3, "not closed"),
            (b"A='s3cret'x", 1, "closing quote"),
            (b"A='s3cret'#x", 1, "closing quote"),
            (b"B=1\nA=s3\0cret", 2, "NUL"),
            (b"B=1\nA=s3cret\xff", 2, "UTF-8"),
        ] {
            let (found, problem) = parse(text).unwrap_err();
            assert_eq!(found, line, "{}", String::from_utf8_lossy(text));
            assert!(
                problem.contains(part) && !problem.contains("s3cret"),
                "{problem}"
            );
        }
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_where_that_matters() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("env");
        std::fs::write(&path, "A=s3cret\n").unwrap();
        for (mode, private) in [
            (0o600, true),
            (0o400, true),
            (0o640, false),
            (0o604, false),
            (0o620, false),
        ] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert!(read(&path, Readers::Anybody).is_ok());
            let strict = read(&path, Readers::Owner).map_err(|error| error.to_string());
            assert_eq!(strict.is_ok(), private, "{mode:o}");
            if let Err(message) = strict {
                assert!(message.contains("chmod 600"), "{message}");
            }
        }
        for absent in [dir.path().join("absent"), dir.path().to_owned()] {
            let message = read(&absent, Readers::Owner).unwrap_err().to_string();
            assert!(message.contains("cannot be read"), "{message}");
        }
        std::fs::write(&path, "x".repeat(2 << 20)).unwrap();
        assert!(read(&path, Readers::Anybody).is_err());
    }

    proptest! {
        #[test]
        fn whatever_is_in_it_no_panic_and_what_is_quoted_comes_back(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            value in "[^\0]{0,60}",
        ) {
            let _ = parse(&bytes);
            let escaped = value.replace('\\', "\\\\").replace('"', "\\\"");
            prop_assert_eq!(one(&format!("A=\"{escaped}\"\n")), Ok(value.clone()));
            let plain = value.replace('\'', "");
            prop_assert_eq!(one(&format!("A='{plain}'")), Ok(plain));
        }
    }
}
