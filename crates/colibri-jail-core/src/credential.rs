//! Credentials that the proxy adds to requests outside of a jail, so that the agent never has the key.

use std::fmt;
use std::str::FromStr;

use crate::{Destination, HttpScheme, JailError};

/// Prefix of the variable in which the proxy gets the key of a credential.
pub const CREDENTIAL_PREFIX: &str = "COLIBRI_CREDENTIAL_";
/// Prefix of a placeholder, which the agent has in place of the key.
pub const PLACEHOLDER_PREFIX: &str = "colibri-placeholder-";
/// Maximum length of the name of a variable, in bytes.
const MAX_NAME_LEN: usize = 128;
/// Marks the place of the key in a template.
const KEY_MARK: &str = "{}";
const CREDENTIAL: &str = "credential";

/// A header field that contains the key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HeaderTemplate {
    /// Name of the field, in lower case.
    header: String,
    /// Value, with `{}` once at the place of the key.
    value: String,
}

impl HeaderTemplate {
    /// Returns the name of the header field, in lower case.
    #[must_use]
    pub fn header(&self) -> &str {
        &self.header
    }

    /// Returns the value with this key.
    #[must_use]
    pub fn value_with(&self, key: &str) -> String {
        self.value.replacen(KEY_MARK, key, 1)
    }
}

/// A credential for one host over TLS: `NAME@HOST[:PORT][=HEADER: TEMPLATE]`. NAME is the agent's variable. Without a template
/// the proxy replaces the placeholder, which is the variable's value, in header fields; with one it sets the field.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CredentialRule {
    name: String,
    destination: Destination,
    template: Option<HeaderTemplate>,
}

impl CredentialRule {
    /// Returns the name of the agent's variable.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the only host that gets the key, with its port.
    #[must_use]
    pub fn destination(&self) -> &Destination {
        &self.destination
    }

    /// Returns the header field to set, if the rule has one.
    #[must_use]
    pub fn template(&self) -> Option<&HeaderTemplate> {
        self.template.as_ref()
    }

    /// Validates a key: it becomes part of a header field.
    ///
    /// # Errors
    /// The key is empty, or not printable ASCII.
    pub fn check_key(&self, key: &str) -> Result<(), JailError> {
        match is_credential_key(key) {
            true => Ok(()),
            false => Err(JailError::Conflict(format!(
                "the key of credential {} is empty or has characters other than printable ASCII; set the variable {} to the key",
                self.name, self.name
            ))),
        }
    }

    /// Returns the name of the variable in which the proxy gets the key.
    #[must_use]
    pub fn key_variable(&self) -> String {
        format!("{CREDENTIAL_PREFIX}{}", self.name)
    }
}

/// Returns whether a text can be a key: it becomes part of a header field.
#[must_use]
pub fn is_credential_key(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

impl FromStr for CredentialRule {
    type Err = JailError;

    fn from_str(text: &str) -> Result<Self, JailError> {
        let invalid = |problem: &str| JailError::invalid(CREDENTIAL, text, problem);
        let (name, rest) = text.split_once('@').ok_or_else(|| {
            invalid("has no host; write NAME@HOST, like GITHUB_TOKEN@api.github.com")
        })?;
        let is_name = name.len() <= MAX_NAME_LEN
            && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !is_name {
            return Err(invalid(
                "has an invalid NAME; write the name of a variable: letters, digits and '_'",
            ));
        }
        let (host, template) = match rest.split_once('=') {
            Some((host, template)) => (host, Some(parse_template(template).map_err(invalid)?)),
            None => (rest, None),
        };
        let destination = Destination::from_authority(host, HttpScheme::Https.default_port())
            .map_err(|_| {
                invalid("has an invalid host; write NAME@HOST or NAME@HOST:PORT, without patterns")
            })?;
        Ok(Self {
            name: name.to_owned(),
            destination,
            template,
        })
    }
}

fn parse_template(text: &str) -> Result<HeaderTemplate, &'static str> {
    let (header, value) = text.split_once(':').ok_or(
        "has a template without a header; write =HEADER: TEMPLATE, like =Authorization: Bearer {}",
    )?;
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if header.is_empty() || !header.bytes().all(is_token) {
        return Err("has an invalid header name; write =HEADER: TEMPLATE, like =x-api-key: {}");
    }
    let header = header.to_ascii_lowercase();
    if [
        "host",
        "connection",
        "content-length",
        "transfer-encoding",
        "upgrade",
        "te",
    ]
    .contains(&header.as_str())
    {
        return Err("sets a header of the connection; use one of the request, like Authorization");
    }
    let value = value.trim();
    if !value.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err("has a template with control or non-ASCII characters; remove them");
    }
    if value.matches(KEY_MARK).count() != 1 {
        return Err("has a template without exactly one {}; write {} at the place of the key");
    }
    Ok(HeaderTemplate {
        header,
        value: value.to_owned(),
    })
}

impl fmt::Display for CredentialRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.destination)?;
        match &self.template {
            Some(template) => write!(f, "={}: {}", template.header, template.value),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn credentials_are_shown_in_one_form() {
        for (text, shown) in [
            ("TOKEN@API.example", "TOKEN@api.example:443"),
            ("TOKEN@a:8443", "TOKEN@a:8443"),
            (
                "K@a=Authorization:Bearer {}",
                "K@a:443=authorization: Bearer {}",
            ),
            ("K@[::1]:1=X-Key: {}", "K@[::1]:1=x-key: {}"),
        ] {
            assert_eq!(text.parse::<CredentialRule>().unwrap().to_string(), shown);
        }
        let rule: CredentialRule = "K@a=Authorization: token {}".parse().unwrap();
        assert_eq!(rule.key_variable(), "COLIBRI_CREDENTIAL_K");
        assert_eq!(rule.template().unwrap().value_with("{}x"), "token {}x");
    }

    #[test]
    fn key_that_no_header_can_have_is_refused() {
        let rule: CredentialRule = "K@a".parse().unwrap();
        assert_eq!(rule.check_key("a b~"), Ok(()));
        for key in ["", "a\nb", "\u{e4}", "a\tb"] {
            let error = rule.check_key(key).unwrap_err().to_string();
            assert!(error.contains("set the variable K"), "{error}");
        }
    }

    #[test]
    fn invalid_credentials_have_a_hint() {
        for (text, hint) in [
            ("", "write NAME@HOST"),
            ("TOKEN", "write NAME@HOST"),
            ("@a", "name of a variable"),
            ("A B@a", "name of a variable"),
            ("1A@a", "name of a variable"),
            ("A=B@a", "name of a variable"),
            ("A@", "invalid host"),
            ("A@*.b", "without patterns"),
            ("A@b:x", "invalid host"),
            ("A@b=", "without a header"),
            ("A@b=Bearer {}", "without a header"),
            ("A@b=X Y: {}", "invalid header name"),
            ("A@b=Host: {}", "header of the connection"),
            ("A@b=X: y", "exactly one {}"),
            ("A@b=X: {}{}", "exactly one {}"),
            ("A@b=X: {}\r\nY: z", "control"),
        ] {
            let error = text.parse::<CredentialRule>().unwrap_err().to_string();
            assert!(error.contains(hint), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn shown_credential_is_parsed_to_the_same(text in "[A-Z]{1,3}@[a-z.]{1,5}(:[1-9])?(=[A-Za-z-]{1,4}: ?[ -~]{0,5}\\{\\})?") {
            if let Ok(rule) = text.parse::<CredentialRule>() {
                prop_assert_eq!(rule.to_string().parse::<CredentialRule>(), Ok(rule));
            }
        }
    }
}
