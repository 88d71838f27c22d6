//! Paths of URLs in one unambiguous form, and patterns for them.

use std::fmt::{self, Write};

/// Why a path of a request or a rule is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AmbiguousPath {
    /// The path is relative, or `*`.
    #[error("it does not start with '/'")]
    Relative,
    /// Servers treat `//` and `/` alike or not.
    #[error("it contains an empty segment (//)")]
    EmptySegment,
    /// A segment leads to another directory: `.` or `..`, also with dots and spaces around it.
    #[error("it contains a segment of dots, like .. or %2e%2e")]
    DotSegment,
    /// A character that separates paths or parameters for some servers: `;`, `\`, an encoded `/` or `%`.
    #[error("it contains {0:?}, plain or encoded, which servers interpret differently")]
    Character(char),
    /// `%` without two hexadecimal digits.
    #[error("it contains '%' without two hexadecimal digits")]
    Escape,
    /// The decoded bytes are not UTF-8.
    #[error("its decoded bytes are not UTF-8")]
    Encoding,
}

/// The path of a URL, as decoded segments. Every server that follows RFC 3986 finds the same segments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrlPath {
    /// The decoded texts between the slashes. Only the last one may be empty: of a path that ends with a slash.
    segments: Vec<String>,
}

impl UrlPath {
    /// Parses a path without a query.
    ///
    /// # Errors
    /// Servers could interpret the path in different ways.
    pub fn parse(text: &str) -> Result<Self, AmbiguousPath> {
        let relative = text.strip_prefix('/').ok_or(AmbiguousPath::Relative)?;
        let segments: Vec<String> = relative.split('/').map(decode).collect::<Result<_, _>>()?;
        match segments.split_last() {
            Some((_, before)) if before.iter().any(String::is_empty) => {
                Err(AmbiguousPath::EmptySegment)
            }
            _ => Ok(Self { segments }),
        }
    }
}

/// Decodes the percent-encoding of one segment.
fn decode(segment: &str) -> Result<String, AmbiguousPath> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
                let (Some(high), Some(low)) = (digit(), digit()) else {
                    return Err(AmbiguousPath::Escape);
                };
                u8::try_from(high * 16 + low).map_err(|_| AmbiguousPath::Escape)?
            }
            byte => byte,
        });
    }
    let text = String::from_utf8(bytes).map_err(|_| AmbiguousPath::Encoding)?;
    let is_ambiguous = |c: char| c.is_control() || "/\\;%".contains(c);
    if let Some(c) = text.chars().find(|c| is_ambiguous(*c)) {
        return Err(AmbiguousPath::Character(c));
    }
    // Some servers remove spaces and dots at the end of a name.
    if !text.is_empty() && text.trim_matches([' ', '.']).is_empty() {
        return Err(AmbiguousPath::DotSegment);
    }
    Ok(text)
}

/// One segment of a pattern.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum SegmentPattern {
    /// Exactly this text, decoded.
    Literal(String),
    /// `*` before a slash: one segment that is not empty.
    Any,
}

/// A pattern for paths. `*` is a whole segment: at the end it matches all that follows, elsewhere one segment.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PathPattern {
    segments: Vec<SegmentPattern>,
    /// The pattern ends with `/*`.
    open_end: bool,
}

impl PathPattern {
    /// Parses a pattern; an error is the cause and a hint.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.contains(['?', '#']) {
            return Err("has a query or fragment; remove it: a rule applies to every query".into());
        }
        if text.bytes().any(|byte| !(b'!'..=b'~').contains(&byte)) {
            return Err("has a character that URLs encode; write a space as %20".into());
        }
        if text
            .split('/')
            .any(|segment| segment != "*" && segment.contains('*'))
        {
            return Err(
                "has '*' beside other characters; write it as a whole segment, like /repos/* or /repos/*/issues".into(),
            );
        }
        let (text, open_end) = match text.strip_suffix("/*") {
            Some(before) => (before, true),
            None => (text, false),
        };
        let segments = if open_end && text.is_empty() {
            Vec::new()
        } else {
            let path = UrlPath::parse(text).map_err(|error| {
                format!("has a path that is ambiguous: {error}; write it plainly")
            })?;
            // A decoded `*` is a literal; only a plain one is a wildcard.
            path.segments
                .into_iter()
                .zip(text.split('/').skip(1))
                .map(|(decoded, raw)| match raw {
                    "*" => SegmentPattern::Any,
                    _ => SegmentPattern::Literal(decoded),
                })
                .collect()
        };
        if open_end && segments.last() == Some(&SegmentPattern::Literal(String::new())) {
            return Err("has an empty segment (//); write one slash".into());
        }
        Ok(Self { segments, open_end })
    }

    pub(crate) fn matches(&self, path: &UrlPath) -> bool {
        let long_enough = match self.open_end {
            true => path.segments.len() > self.segments.len(),
            false => path.segments.len() == self.segments.len(),
        };
        long_enough
            && self
                .segments
                .iter()
                .zip(&path.segments)
                .all(|(pattern, segment)| match pattern {
                    SegmentPattern::Literal(literal) => literal == segment,
                    SegmentPattern::Any => !segment.is_empty(),
                })
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for segment in &self.segments {
            f.write_char('/')?;
            match segment {
                SegmentPattern::Any => f.write_char('*')?,
                SegmentPattern::Literal(literal) => {
                    for byte in literal.bytes() {
                        match byte {
                            byte if byte.is_ascii_alphanumeric()
                                || b"-._~!$&'()+,=:@".contains(&byte) =>
                            {
                                f.write_char(char::from(byte))?;
                            }
                            byte => write!(f, "%{byte:02X}")?,
                        }
                    }
                }
            }
        }
        f.write_str(if self.open_end { "/*" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ambiguous_paths_are_refused() {
        use AmbiguousPath::{Character, DotSegment, EmptySegment, Encoding, Escape, Relative};
        for (text, error) in [
            ("", Relative),
            ("*", Relative),
            ("repos/x", Relative),
            ("//", EmptySegment),
            ("/a//b", EmptySegment),
            ("/a/../b", DotSegment),
            ("/a/..", DotSegment),
            ("/.", DotSegment),
            ("/a/./b", DotSegment),
            ("/a/%2e%2e/b", DotSegment),
            ("/a/%2E./b", DotSegment),
            ("/a/.../b", DotSegment),
            ("/a/..%20/b", DotSegment),
            ("/a/%20/b", DotSegment),
            ("/a/..;/b", Character(';')),
            ("/a;x=1/b", Character(';')),
            ("/a%3bx/b", Character(';')),
            ("/a\\..\\b", Character('\\')),
            ("/a%5c..%5cb", Character('\\')),
            ("/a%2fb", Character('/')),
            ("/a/%252e%252e/b", Character('%')),
            ("/a%00", Character('\0')),
            ("/a%0d%0a", Character('\r')),
            ("/a%7f", Character('\u{7f}')),
            ("/a%2", Escape),
            ("/a%", Escape),
            ("/a%zz", Escape),
            ("/a%+1", Escape),
            ("/a/%c0%ae%c0%ae/b", Encoding),
            ("/a%ff", Encoding),
        ] {
            assert_eq!(UrlPath::parse(text), Err(error), "{text:?}");
        }
        for text in [
            "/",
            "/a",
            "/a/",
            "/a.b/..c/.git",
            "/a%20b",
            "/%C3%A4",
            "/a:b@c",
        ] {
            assert!(UrlPath::parse(text).is_ok(), "{text:?}");
        }
    }

    #[test]
    fn pattern_matches_whole_segments() {
        for (pattern, path, expected) in [
            ("/", "/", true),
            ("/", "/a", false),
            ("/*", "/", true),
            ("/*", "/a/b/c", true),
            ("/repos", "/repos", true),
            ("/repos", "/repos/", false),
            ("/repos/", "/repos/", true),
            ("/repos/*", "/repos", false),
            ("/repos/*", "/repos/", true),
            ("/repos/*", "/repos/a", true),
            ("/repos/*", "/repos/a/b/", true),
            ("/repos/*", "/REPOS/a", false),
            ("/repos/*", "/repositories/a", false),
            ("/repos/*", "/%72epos/a", true),
            ("/repos/*/issues", "/repos/a/issues", true),
            ("/repos/*/issues", "/repos/a/b/issues", false),
            ("/repos/*/issues", "/repos/a/pulls", false),
            ("/*/x/*", "/a/x/y", true),
            ("/*/x/*", "/a/y/x", false),
            ("/*/", "/a/", true),
            ("/*/", "/a", false),
            ("/a%20b", "/a b", true),
            ("/%2a", "/*", true),
            ("/%2a", "/a", false),
            ("/a/*", "/a/*", true),
        ] {
            let parsed = PathPattern::parse(pattern).unwrap();
            let found = parsed.matches(&UrlPath::parse(path).unwrap());
            assert_eq!(found, expected, "{pattern} {path}");
        }
    }

    #[test]
    fn invalid_patterns_have_a_hint() {
        for (pattern, hint) in [
            ("/repos*", "whole segment"),
            ("/**", "whole segment"),
            ("/a?x", "query"),
            ("/a#x", "fragment"),
            ("/a b", "%20"),
            ("/a/../b", "ambiguous"),
            ("//*", "one slash"),
            ("/a//*", "one slash"),
            ("/a;b", "ambiguous"),
            ("", "ambiguous"),
        ] {
            let error = PathPattern::parse(pattern).unwrap_err();
            assert!(error.contains(hint), "{pattern}: {error}");
        }
    }

    proptest! {
        /// A path below an allowed directory stays there for a server that decodes once more, removes dot segments, merges
        /// slashes and reads backslashes as slashes.
        #[test]
        fn matched_path_stays_below_its_directory(tail in "([a-z.%/;\\\\ ]|%2[eEfF5]|\\.\\./|%5c){0,12}") {
            let text = format!("/repos/{tail}");
            let pattern = PathPattern::parse("/repos/*").unwrap();
            if let Ok(path) = UrlPath::parse(&text) && pattern.matches(&path) {
                let mut decoded = text.clone();
                for _ in 0..3 {
                    for (code, plain) in [("%2e", "."), ("%2E", "."), ("%2f", "/"), ("%2F", "/"), ("%5c", "/"), ("%25", "%")] {
                        decoded = decoded.replace(code, plain);
                    }
                }
                let mut stack = Vec::new();
                for segment in decoded.split(['/', '\\']) {
                    let segment = segment.split(';').next().unwrap_or_default();
                    match segment.trim() {
                        "" | "." => {}
                        ".." => { stack.pop(); }
                        other => stack.push(other.to_owned()),
                    }
                }
                prop_assert_eq!(stack.first().map(String::as_str), Some("repos"), "{}", text);
            }
        }

        #[test]
        fn shown_pattern_is_parsed_to_the_same(text in "(/([a-z*]|%2a|%20|%C3%A4|:|~){0,3}){1,4}(/\\*)?") {
            if let Ok(pattern) = PathPattern::parse(&text) {
                prop_assert_eq!(PathPattern::parse(&pattern.to_string()), Ok(pattern));
            }
        }

        #[test]
        fn any_text_is_parsed_without_panic(text in "\\PC{0,40}") {
            let _ = UrlPath::parse(&text);
            let _ = PathPattern::parse(&text);
        }
    }
}
