//! The values of a policy: strings in the file, validated when it is parsed.

use std::fmt;

use colibri_jail_core::{Ip4Policy, JailName, JailPath, JailUser, Signal};
use serde::Deserialize;

use crate::environment;
use crate::sys::Caller;
use crate::users::UserIds;

/// Implements `TryFrom<String>`, which serde uses, by the type's `new`.
macro_rules! from_text {
    ($($type:ident)*) => { $(
        impl TryFrom<String> for $type {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                Self::new(&text)
            }
        }
    )* };
}
from_text! { AllowedCaller JailPattern VariablePattern AllowedRoot AllowedUser AllowedProgram AllowedIp4 AllowedSignal }

/// Implements `Display` by the only field.
macro_rules! display_inner {
    ($($type:ident)*) => { $(
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )* };
}
display_inner! { JailPattern VariablePattern AllowedUser AllowedIp4 AllowedSignal }

/// Parses a value of colibri-jail-core, with its error as text.
fn parse<T: std::str::FromStr<Err: fmt::Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}

/// A caller: a name, a uid, `%group` or `%gid`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) enum AllowedCaller {
    User(JailUser),
    Group(JailUser),
}

impl AllowedCaller {
    fn new(text: &str) -> Result<Self, String> {
        let (name, is_group) = match text.strip_prefix('%') {
            Some(name) => (name, true),
            None => (text, false),
        };
        match parse(name)? {
            JailUser::Id { gid: Some(_), .. } => {
                Err(format!("caller {text:?} has a gid; give the uid only"))
            }
            group if is_group => Ok(Self::Group(group)),
            user => Ok(Self::User(user)),
        }
    }

    /// Reports whether this is the caller. A name that the host's tables do not have matches no caller.
    pub(super) fn is(
        &self,
        caller: &Caller,
        find_group: &impl Fn(&str) -> Option<u32>,
        find_user: &impl Fn(&JailUser) -> Option<UserIds>,
    ) -> bool {
        match self {
            Self::User(user) => find_user(user).is_some_and(|ids| ids.uid == caller.uid),
            Self::Group(JailUser::Id { uid: gid, .. }) => caller.groups.contains(gid),
            Self::Group(JailUser::Name(name)) => {
                find_group(name.as_ref()).is_some_and(|gid| caller.groups.contains(&gid))
            }
        }
    }
}

/// A text that matches exactly, or with a final `*` as a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    text: String,
    is_prefix: bool,
}

impl Pattern {
    /// Splits off a final `*` and validates the rest, unless the pattern is `*` alone.
    fn new(pattern: &str, validate: impl Fn(&str) -> Result<(), String>) -> Result<Self, String> {
        let (text, is_prefix) = match pattern.strip_suffix('*') {
            Some(prefix) => (prefix, true),
            None => (pattern, false),
        };
        if pattern != "*" {
            validate(text)?;
        }
        Ok(Self {
            text: text.to_owned(),
            is_prefix,
        })
    }

    fn matches(&self, text: &str) -> bool {
        if self.is_prefix {
            text.starts_with(&self.text)
        } else {
            text == self.text
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.text, if self.is_prefix { "*" } else { "" })
    }
}

/// A jail's name, or a prefix of names and `*`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct JailPattern(Pattern);

impl JailPattern {
    pub(super) fn new(text: &str) -> Result<Self, String> {
        Pattern::new(text, |name| parse::<JailName>(name).map(drop)).map(Self)
    }

    pub(super) fn matches(&self, name: &JailName) -> bool {
        self.0.matches(name.as_str())
    }
}

/// A variable's name, or a prefix of names and `*`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct VariablePattern(Pattern);

impl VariablePattern {
    pub(super) fn new(text: &str) -> Result<Self, String> {
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

    pub(super) fn matches(&self, name: &str) -> bool {
        self.0.matches(name)
    }
}

/// A root directory, or with `/*` everything below a directory.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct AllowedRoot {
    path: JailPath,
    is_tree: bool,
}

impl AllowedRoot {
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let (path, is_tree) = match text.strip_suffix("/*") {
            Some("") => ("/", true),
            Some(path) => (path, true),
            None => (text, false),
        };
        if path.contains('*') {
            return Err(format!(
                "root {text:?} has a '*' before its end; use it in a final /* only"
            ));
        }
        Ok(Self {
            path: parse(path)?,
            is_tree,
        })
    }

    pub(super) fn contains(&self, path: &JailPath) -> bool {
        if !self.is_tree {
            return self.path == *path;
        }
        let tree = self.path.as_str().trim_end_matches('/');
        path.as_str()
            .strip_prefix(tree)
            .is_some_and(|below| below.len() > 1 && below.starts_with('/'))
    }
}

impl fmt::Display for AllowedRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.is_tree, self.path.as_str()) {
            (true, "/") => f.write_str("/*"),
            (true, path) => write!(f, "{path}/*"),
            (false, path) => f.write_str(path),
        }
    }
}

/// A user inside a jail.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct AllowedUser(pub(crate) JailUser);

impl AllowedUser {
    fn new(text: &str) -> Result<Self, String> {
        parse(text).map(Self)
    }
}

/// A program inside a jail.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) enum AllowedProgram {
    Any,
    Path(JailPath),
}

impl AllowedProgram {
    fn new(text: &str) -> Result<Self, String> {
        match text {
            "*" => Ok(Self::Any),
            path => parse(path).map(Self::Path),
        }
    }

    pub(super) fn allows(&self, path: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Path(allowed) => allowed.as_str() == path,
        }
    }
}

impl fmt::Display for AllowedProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Path(path) => path.fmt(f),
        }
    }
}

/// `inherit`, `disable`, `new`, or one address.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct AllowedIp4(pub(super) Ip4Policy);

impl AllowedIp4 {
    fn new(text: &str) -> Result<Self, String> {
        match parse(text)? {
            Ip4Policy::Addresses(list) if list.len() > 1 => Err(format!(
                "ip4 {text:?} has several addresses; write one string for each"
            )),
            one => Ok(Self(one)),
        }
    }
}

/// A signal's name without `SIG`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct AllowedSignal(pub(super) Signal);

impl AllowedSignal {
    fn new(text: &str) -> Result<Self, String> {
        let signal: Signal = parse(text)?;
        if signal.name() == text {
            Ok(Self(signal))
        } else {
            Err(format!(
                "signal {text:?} is not a name; write it as {signal}"
            ))
        }
    }
}
