//! The paths that a configuration of git names (git-config(1), "Syntax"). Pure.

use std::iter::Peekable;
use std::str::Chars;

/// A path in a configuration, as its text after quotes and escapes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NamedPath {
    /// The directory of hooks, `core.hooksPath`.
    Hooks(String),
    /// A file that is read too, `include.path` and `includeIf.CONDITION.path`.
    Include(String),
}

/// Returns all of these paths, those under a condition included.
pub(crate) fn named_paths(config: &str) -> Vec<NamedPath> {
    let mut chars = config
        .strip_prefix('\u{feff}')
        .unwrap_or(config)
        .chars()
        .peekable();
    let mut section = String::new();
    let mut named = Vec::new();
    while let Some(first) = chars.next() {
        match first {
            '#' | ';' => skip_line(&mut chars),
            '[' => section = read_section(&mut chars),
            c if c.is_alphanumeric() => {
                let mut name = String::from(c);
                while let Some(c) = chars.next_if(|c| c.is_alphanumeric() || *c == '-') {
                    name.push(c);
                }
                while chars.next_if(|c| matches!(c, ' ' | '\t')).is_some() {}
                if chars.next_if_eq(&'=').is_none() {
                    continue;
                }
                let value = read_value(&mut chars);
                match (section.as_str(), name.to_ascii_lowercase().as_str()) {
                    ("core", "hookspath") => named.push(NamedPath::Hooks(value)),
                    ("include" | "includeif", "path") => named.push(NamedPath::Include(value)),
                    _ => {}
                }
            }
            _ => {}
        }
    }
    named
}

fn skip_line(chars: &mut Peekable<Chars<'_>>) {
    while chars.next().is_some_and(|c| c != '\n') {}
}

/// Reads the rest of the header of a section, and returns its first word in lower case.
fn read_section(chars: &mut Peekable<Chars<'_>>) -> String {
    let mut name = String::new();
    while let Some(c) = chars.next_if(|c| c.is_alphanumeric() || *c == '-') {
        name.push(c.to_ascii_lowercase());
    }
    let mut is_quoted = false;
    while let Some(c) = chars.next() {
        match c {
            '"' => is_quoted = !is_quoted,
            '\\' if is_quoted => drop(chars.next()),
            ']' if !is_quoted => break,
            '\n' => break,
            _ => {}
        }
    }
    name
}

/// Reads a value up to the end of its line.
fn read_value(chars: &mut Peekable<Chars<'_>>) -> String {
    let (mut value, mut is_quoted) = (String::new(), false);
    // Length without spaces at the end, which are dropped unless quoted.
    let mut length = 0;
    while let Some(c) = chars.next() {
        match c {
            '\n' => break,
            '#' | ';' if !is_quoted => {
                skip_line(chars);
                break;
            }
            '"' => is_quoted = !is_quoted,
            '\\' => match chars.next() {
                Some('n') => value.push('\n'),
                Some('t') => value.push('\t'),
                Some('b') => value.push('\u{8}'),
                // The value continues.
                Some('\n') | None => {}
                Some('\r') => drop(chars.next_if_eq(&'\n')),
                Some(other) => value.push(other),
            },
            c if c.is_whitespace() && !is_quoted => {
                if length > 0 {
                    value.push(c);
                }
                continue;
            }
            c => value.push(c),
        }
        length = value.len();
    }
    value.truncate(length);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_hooks_and_includes_are_read_as_git_does() {
        let hooks = |path: &str| NamedPath::Hooks(path.to_owned());
        let include = |path: &str| NamedPath::Include(path.to_owned());
        for (config, expected) in [
            (
                "[core]\n\thooksPath = tools/hooks # x\n",
                vec![hooks("tools/hooks")],
            ),
            ("[core]\n\tHOOKSPATH=d]e\n", vec![hooks("d]e")]),
            ("[core] hooksPath = \"a # b\" ; c\n", vec![hooks("a # b")]),
            ("[CORE]\nhooksPath = ~/x y  \r\n", vec![hooks("~/x y")]),
            (
                "[core]\nhooksPath = a\\\n\\\"b\\\\c\n",
                vec![hooks("a\"b\\c")],
            ),
            ("[core]\nhooksPath = \" a \"\n", vec![hooks(" a ")]),
            (
                "# [core]\n;hooksPath = x\n[core \"s\"]bare\nhookspath\n",
                vec![],
            ),
            (
                "[include]path=a\n[includeIf \"gitdir:/x]\\\"y/\"]\n\tpath = b\n[remote \"r\"]\n\tpath = no\n",
                vec![include("a"), include("b")],
            ),
            (
                "[core]\nbare = false\n\thooksPath\t=\tlast",
                vec![hooks("last")],
            ),
            ("[core\nhooksPath = x", vec![hooks("x")]),
            ("", vec![]),
        ] {
            assert_eq!(named_paths(config), expected, "{config:?}");
        }
    }
}
