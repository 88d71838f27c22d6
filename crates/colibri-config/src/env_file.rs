//! Environment files in the format of docker and dotenv: `NAME=VALUE` lines, comments, quotes.
//!
//! Values are secrets, so no error contains one. `$` in a value is not expanded (docs/decisions/0019).

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use colibri_sys::ownership::Ownership;
use colibri_sys::regular_file;

/// Maximum size of an environment file, in bytes. Larger than a usable environment (execve(2)).
const MAX_BYTES: u64 = 1 << 20;

/// Why an environment file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnvFileError {
    /// The file cannot be read.
    #[error("cannot read environment file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// A line is invalid. The message does not contain it, because it may contain a secret.
    #[error("environment file {path}:{line}: {problem}")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// Cause and hint.
        problem: &'static str,
    },
    /// Other users have access to the file.
    #[error(
        "environment file {path} is accessible to other users (mode {mode:04o}); run: chmod 600 {path}"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Permission bits.
        mode: u32,
    },
}

/// The users who may have access to an environment file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AllowedReaders {
    /// Only its owner.
    Owner,
    /// Every user.
    Everyone,
}

/// Reads an environment file.
///
/// # Errors
/// The file cannot be read, a line is invalid, or users outside `readers` have access.
pub fn read(
    path: &Path,
    readers: AllowedReaders,
) -> Result<BTreeMap<String, String>, EnvFileError> {
    let failed = |source| EnvFileError::Read {
        path: path.to_owned(),
        source,
    };
    let file = regular_file::open_without_links(path).map_err(failed)?;
    let ownership = Ownership::from(&file.metadata().map_err(failed)?);
    if readers == AllowedReaders::Owner && ownership.is_accessible_by_others() {
        return Err(EnvFileError::Open {
            path: path.to_owned(),
            mode: ownership.mode,
        });
    }
    let bytes = regular_file::read_open(&file, MAX_BYTES).map_err(failed)?;
    parse(path, &bytes)
}

/// Parses the text of an environment file. The last of several values of a variable wins. Does no I/O: `path` is used in
/// messages.
///
/// # Errors
/// The first invalid line.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, String>, EnvFileError> {
    let invalid_after = |newlines: usize, problem| EnvFileError::Line {
        path: path.to_owned(),
        line: 1 + newlines,
        problem,
    };
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let newlines = valid.iter().filter(|byte| **byte == b'\n').count();
        invalid_after(
            newlines,
            "the line is not valid UTF-8; convert the file to UTF-8",
        )
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut variables = BTreeMap::new();
    let mut rest = text;
    while !rest.is_empty() {
        let invalid = |problem| {
            let newlines = text.matches('\n').count() - rest.matches('\n').count();
            invalid_after(newlines, problem)
        };
        let (line, next_line) = rest.split_once('\n').unwrap_or((rest, ""));
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            rest = next_line;
            continue;
        }
        let Some((name, unquoted_value)) = line.split_once('=') else {
            return Err(invalid(
                "the line has no '='; write NAME=VALUE, or pass --secret NAME for a variable of your environment",
            ));
        };
        let from_value = rest.get(name.len() + 1..).unwrap_or_default();
        let from_value = from_value.trim_start_matches(|c: char| c.is_whitespace() && c != '\n');
        let name = name.trim();
        let name = name.strip_prefix("export ").map_or(name, str::trim_start);
        if name.is_empty() || name.contains(char::is_whitespace) || name.contains(['\0', '"', '\''])
        {
            return Err(invalid(
                "the text before '=' is not the name of a variable; write NAME=VALUE",
            ));
        }
        // A quoted value may span several lines.
        let (value, after) = match from_value.chars().next() {
            Some(quote @ ('\'' | '"')) => {
                let Some(Quoted { value, after }) = quoted(from_value, quote) else {
                    return Err(invalid(
                        "the quote of the value is not closed; close it, or use quotes of the other kind",
                    ));
                };
                let (trailing, next_line) = after.split_once('\n').unwrap_or((after, ""));
                let comment = trailing.trim_start();
                let is_comment = comment.starts_with('#') && comment.len() < trailing.len();
                if !comment.is_empty() && !is_comment {
                    return Err(invalid(
                        "text follows the closing quote; put the whole value into the quotes",
                    ));
                }
                (value, next_line)
            }
            _ => (unquoted(unquoted_value).to_owned(), next_line),
        };
        if value.contains('\0') {
            return Err(invalid("the value contains a NUL byte; remove it"));
        }
        variables.insert(name.to_owned(), value);
        rest = after;
    }
    Ok(variables)
}

/// Returns an unquoted value without surrounding whitespace and without a comment, which starts after whitespace.
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

/// A quoted value, and the text after its closing quote.
struct Quoted<'a> {
    value: String,
    after: &'a str,
}

/// Parses a value from its opening to its closing quote; returns `None` without one. Between double quotes, `\n`, `\r`,
/// `\t`, `\"`, `\\` and `\$` are escape sequences; any other backslash is literal.
fn quoted(text: &str, quote: char) -> Option<Quoted<'_>> {
    let mut value = String::new();
    let mut characters = text.chars();
    characters.next();
    while let Some(c) = characters.next() {
        if c == quote {
            let after = characters.as_str();
            return Some(Quoted { value, after });
        }
        if c != '\\' || quote == '\'' {
            value.push(c);
            continue;
        }
        match characters.next()? {
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

    fn parse_bytes(bytes: &[u8]) -> Result<BTreeMap<String, String>, EnvFileError> {
        parse(Path::new("env"), bytes)
    }

    fn one(text: &str) -> Result<String, String> {
        let parsed = parse_bytes(text.as_bytes());
        let mut variables = parsed.map_err(|error| error.to_string())?;
        assert_eq!(variables.len(), 1, "{text:?}");
        Ok(variables.remove("A").unwrap())
    }

    #[test]
    fn values_are_parsed_like_dotenv() {
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
        assert_eq!(parse_bytes(b"").unwrap(), BTreeMap::new());
    }

    #[test]
    fn invalid_line_is_reported_without_its_text() {
        for (text, line, part) in [
            (&b"A=b\ns3cret\n"[..], 2, "no '='"),
            (b"\n\n=s3cret", 3, "not the name"),
            (b"A B=s3cret", 1, "not the name"),
            (b"\"A\"=s3cret", 1, "not the name"),
            (b"A='s3cret", 1, "not closed"),
            (b"X='a\nb'\nA=\"s3cret\\\"", 3, "not closed"),
            (b"A='s3cret'x", 1, "closing quote"),
            (b"A='s3cret'#x", 1, "closing quote"),
            (b"B=1\nA=s3\0cret", 2, "NUL"),
            (b"B=1\nA=s3cret\xff", 2, "UTF-8"),
        ] {
            let error = parse_bytes(text).unwrap_err();
            let EnvFileError::Line {
                line: actual,
                problem,
                ..
            } = error
            else {
                panic!("{error}");
            };
            assert_eq!(actual, line, "{}", String::from_utf8_lossy(text));
            assert!(
                problem.contains(part) && !problem.contains("s3cret"),
                "{problem}"
            );
        }
    }

    #[test]
    fn file_readable_by_others_is_refused_for_owner_only() {
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
            assert!(read(&path, AllowedReaders::Everyone).is_ok());
            let strict = read(&path, AllowedReaders::Owner).map_err(|error| error.to_string());
            assert_eq!(strict.is_ok(), private, "{mode:o}");
            if let Err(message) = strict {
                assert!(message.contains("chmod 600"), "{message}");
            }
        }
        for absent in [dir.path().join("absent"), dir.path().to_owned()] {
            let message = read(&absent, AllowedReaders::Owner)
                .unwrap_err()
                .to_string();
            assert!(message.contains("cannot read"), "{message}");
        }
        std::fs::write(&path, "x".repeat(2 << 20)).unwrap();
        assert!(read(&path, AllowedReaders::Everyone).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_parse_and_quoted_values_round_trip(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            value in "[^\0]{0,60}",
        ) {
            let _ = parse_bytes(&bytes);
            let escaped = value.replace('\\', "\\\\").replace('"', "\\\"");
            prop_assert_eq!(one(&format!("A=\"{escaped}\"\n")), Ok(value.clone()));
            let plain = value.replace('\'', "");
            prop_assert_eq!(one(&format!("A='{plain}'")), Ok(plain));
        }
    }
}
