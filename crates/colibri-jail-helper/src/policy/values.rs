//! The values of a policy: strings in the file, validated when it is parsed.

use std::fmt;

use colibri_jail_core::{Ip4Policy, JailName, JailPath, JailUser, Signal};
use serde::Deserialize;

use crate::environment;
use crate::sys::Caller;
use crate::users;

/// A validated value with its text, as which it is displayed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String", bound = "T: ParseValue")]
pub(crate) struct Value<T> {
    text: String,
    pub(crate) value: T,
}

impl<T: ParseValue> TryFrom<String> for Value<T> {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let value = T::parse_value(&text)?;
        Ok(Self { text, value })
    }
}

impl<T> fmt::Display for Value<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A type of values in a policy, which may be stricter than in requests.
pub(super) trait ParseValue: Sized {
    fn parse_value(text: &str) -> Result<Self, String>;
}

/// Parses a value of colibri-jail-core, with its error as text.
fn parse<T: std::str::FromStr<Err: fmt::Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}

/// A caller: a name, a uid, `%group` or `%gid`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AllowedCaller {
    User(JailUser),
    Group(JailUser),
}

impl ParseValue for AllowedCaller {
    fn parse_value(text: &str) -> Result<Self, String> {
        let name = text.strip_prefix('%');
        match parse(name.unwrap_or(text))? {
            JailUser::Id { gid: Some(_), .. } => {
                Err(format!("caller {text:?} has a gid; give the uid only"))
            }
            group if name.is_some() => Ok(Self::Group(group)),
            user => Ok(Self::User(user)),
        }
    }
}

impl AllowedCaller {
    /// Returns texts that are equal for equal callers by these tables, as [`users::keys`] does.
    pub(super) fn keys(&self, passwd: &str, group: &str) -> Vec<String> {
        match self {
            // A number has the group of its entry here, and not that of an agent.
            Self::User(JailUser::Id { uid, .. }) => users::find_user(passwd, |_, id| id == *uid)
                .map_or(vec![format!("user {uid}")], |entry| entry.ids.keys()),
            Self::User(user) => users::keys(passwd, user),
            Self::Group(user) => {
                let name = user.to_string();
                let gid = users::find_group(group, &name).map(|gid| gid.to_string());
                vec![format!("group {}", gid.unwrap_or(name))]
            }
        }
    }

    /// Reports whether this is the caller. A name that a table of the host does not have matches no caller.
    pub(super) fn matches(&self, caller: &Caller, passwd: &str, group: &str) -> bool {
        let keys = self.keys(passwd, group);
        match self {
            Self::User(_) => keys[0] == format!("user {}", caller.uid),
            Self::Group(_) => (caller.groups.iter()).any(|gid| keys[0] == format!("group {gid}")),
        }
    }
}

/// A text that matches exactly, or with a final `*` as a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    text: String,
    is_prefix: bool,
}

impl Pattern {
    /// Splits off a final `*` and validates the rest, unless the pattern is `*` alone.
    fn new(pattern: &str, validate: impl Fn(&str) -> Result<(), String>) -> Result<Self, String> {
        let prefix = pattern.strip_suffix('*');
        let text = prefix.unwrap_or(pattern);
        if pattern != "*" {
            validate(text)?;
        }
        Ok(Self {
            text: text.to_owned(),
            is_prefix: prefix.is_some(),
        })
    }

    pub(super) fn matches(&self, text: &str) -> bool {
        match self.is_prefix {
            true => text.starts_with(&self.text),
            false => text == self.text,
        }
    }
}

/// A jail's name, or a prefix of names and `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct JailPattern(pub(super) Pattern);

impl ParseValue for JailPattern {
    fn parse_value(text: &str) -> Result<Self, String> {
        Pattern::new(text, |name| parse::<JailName>(name).map(drop)).map(Self)
    }
}

/// A variable's name, or a prefix of names and `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VariablePattern(pub(super) Pattern);

impl ParseValue for VariablePattern {
    fn parse_value(text: &str) -> Result<Self, String> {
        let validate = |name: &str| {
            if !environment::is_name(name) {
                return Err(format!(
                    "environment {text:?} is not a variable name, or a prefix of one and *"
                ));
            }
            if environment::is_forbidden(name) {
                return Err(format!("environment {text:?} never passes; omit it"));
            }
            Ok(())
        };
        Pattern::new(text, validate).map(Self)
    }
}

/// A root directory, or with `/*` everything below a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AllowedRoot {
    path: JailPath,
    is_tree: bool,
}

impl ParseValue for AllowedRoot {
    fn parse_value(text: &str) -> Result<Self, String> {
        let tree = text.strip_suffix("/*");
        let path = match tree {
            Some("") => "/",
            Some(path) => path,
            None => text,
        };
        if path.contains('*') {
            return Err(format!(
                "root {text:?} has a '*' before its end; use it in a final /* only"
            ));
        }
        Ok(Self {
            path: parse(path)?,
            is_tree: tree.is_some(),
        })
    }
}

impl AllowedRoot {
    pub(super) fn contains(&self, path: &JailPath) -> bool {
        match self.is_tree {
            true => path != &self.path && path.is_in(self.path.as_str()),
            false => path == &self.path,
        }
    }
}

/// A program inside a jail; none for any program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AllowedProgram(Option<JailPath>);

impl ParseValue for AllowedProgram {
    fn parse_value(text: &str) -> Result<Self, String> {
        let path = (text != "*").then(|| parse(text)).transpose()?;
        Ok(Self(path))
    }
}

impl AllowedProgram {
    pub(super) fn allows(&self, path: &str) -> bool {
        self.0
            .as_ref()
            .is_none_or(|allowed| allowed.as_str() == path)
    }
}

impl ParseValue for JailUser {
    fn parse_value(text: &str) -> Result<Self, String> {
        parse(text)
    }
}

/// `inherit`, `disable`, `new`, or one address.
impl ParseValue for Ip4Policy {
    fn parse_value(text: &str) -> Result<Self, String> {
        match parse(text)? {
            Self::Addresses(list) if list.len() > 1 => Err(format!(
                "ip4 {text:?} has several addresses; write one string for each"
            )),
            one => Ok(one),
        }
    }
}

/// A signal's name without `SIG`.
impl ParseValue for Signal {
    fn parse_value(text: &str) -> Result<Self, String> {
        let signal: Self = parse(text)?;
        if signal.name() == text {
            Ok(signal)
        } else {
            Err(format!(
                "signal {text:?} is not a name; write it as {signal}"
            ))
        }
    }
}
