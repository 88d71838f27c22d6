//! The values of a policy: strings in the file, checked when it is read.

use std::fmt;

use colibri_jail_core::{Ip4Policy, JailName, JailPath, JailUser, Signal};
use serde::Deserialize;

use crate::sys::Caller;

/// What is read from a string is checked by its `new`.
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
pub(crate) use from_text;
from_text! { Who Pattern Tree User Program Ip4 SignalName }

/// A caller: a name, a uid, `%group` or `%gid`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum Who {
    User(JailUser),
    Group(JailUser),
}

impl Who {
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let (name, group) = match text.strip_prefix('%') {
            Some(name) => (name, true),
            None => (text, false),
        };
        match name
            .parse::<JailUser>()
            .map_err(|error| error.to_string())?
        {
            JailUser::Id { gid: Some(_), .. } => {
                Err(format!("caller {text:?} is a uid alone, without a gid"))
            }
            who if group => Ok(Self::Group(who)),
            who => Ok(Self::User(who)),
        }
    }

    /// A name that the host's tables do not know is nobody's.
    pub(super) fn is(
        &self,
        caller: &Caller,
        group: &impl Fn(&str) -> Option<u32>,
        user: &impl Fn(&JailUser) -> Option<(u32, u32)>,
    ) -> bool {
        match self {
            Self::User(who) => user(who).is_some_and(|(uid, _)| uid == caller.uid),
            Self::Group(JailUser::Id { uid: gid, .. }) => caller.groups.contains(gid),
            Self::Group(JailUser::Name(name)) => {
                group(name.as_ref()).is_some_and(|gid| caller.groups.contains(&gid))
            }
        }
    }
}

/// A jail's name, or a prefix of names and `*`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Pattern {
    text: String,
    prefix: bool,
}

impl Pattern {
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let (start, prefix) = match text.strip_suffix('*') {
            Some(start) => (start, true),
            None => (text, false),
        };
        if !(prefix && start.is_empty()) {
            start
                .parse::<JailName>()
                .map_err(|error| error.to_string())?;
        }
        Ok(Self {
            text: start.to_owned(),
            prefix,
        })
    }

    pub(crate) fn matches(&self, name: &JailName) -> bool {
        if self.prefix {
            name.as_str().starts_with(&self.text)
        } else {
            name.as_str() == self.text
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.text, if self.prefix { "*" } else { "" })
    }
}

/// A directory, or with `/*` all that is below it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Tree {
    path: JailPath,
    below: bool,
}

impl Tree {
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let (path, below) = match text.strip_suffix("/*") {
            Some("") => ("/", true),
            Some(path) => (path, true),
            None => (text, false),
        };
        if path.contains('*') {
            return Err(format!(
                "root {text:?} holds '*' elsewhere than in a last /*"
            ));
        }
        let path = path
            .parse()
            .map_err(|error: colibri_jail_core::JailError| error.to_string())?;
        Ok(Self { path, below })
    }

    pub(crate) fn holds(&self, path: &JailPath) -> bool {
        if !self.below {
            return self.path == *path;
        }
        let tree = self.path.as_str().trim_end_matches('/');
        path.as_str()
            .strip_prefix(tree)
            .is_some_and(|rest| rest.len() > 1 && rest.starts_with('/'))
    }
}

impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.below, self.path.as_str()) {
            (true, "/") => f.write_str("/*"),
            (true, path) => write!(f, "{path}/*"),
            (false, path) => f.write_str(path),
        }
    }
}

/// A user inside a jail.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct User(pub(crate) JailUser);

impl User {
    pub(super) fn new(text: &str) -> Result<Self, String> {
        text.parse()
            .map(Self)
            .map_err(|error: colibri_jail_core::JailError| error.to_string())
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A program inside a jail.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum Program {
    Any,
    Path(String),
}

impl Program {
    pub(super) fn new(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::Any);
        }
        text.parse::<JailPath>()
            .map_err(|error| error.to_string())?;
        Ok(Self::Path(text.to_owned()))
    }

    pub(crate) fn allows(&self, path: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Path(allowed) => allowed == path,
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Path(path) => f.write_str(path),
        }
    }
}

/// `inherit`, `disable`, `new`, or one address.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Ip4(Ip4Policy);

impl Ip4 {
    pub(super) fn new(text: &str) -> Result<Self, String> {
        match text
            .parse()
            .map_err(|error: colibri_jail_core::JailError| error.to_string())?
        {
            Ip4Policy::Addresses(list) if list.len() > 1 => Err(format!(
                "ip4 {text:?} is more than one address; write one string for each"
            )),
            one => Ok(Self(one)),
        }
    }
}

impl fmt::Display for Ip4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Every address asked for must be there.
pub(crate) fn allows_ip4(allowed: &[Ip4], wanted: &Ip4Policy) -> bool {
    let listed = |one: &Ip4Policy| allowed.iter().any(|ip4| ip4.0 == *one);
    match wanted {
        Ip4Policy::Addresses(list) => {
            !list.is_empty()
                && list
                    .iter()
                    .all(|address| listed(&Ip4Policy::Addresses(vec![*address])))
        }
        word => listed(word),
    }
}

/// A signal's name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct SignalName(pub(crate) Signal);

impl SignalName {
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let signal: Signal = text
            .parse()
            .map_err(|error: colibri_jail_core::JailError| error.to_string())?;
        if signal.name() == text {
            Ok(Self(signal))
        } else {
            Err(format!("signal {text:?} is written {signal}"))
        }
    }
}

impl fmt::Display for SignalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
