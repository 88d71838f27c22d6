//! Adds keys to requests. Pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use colibri_jail_core::{CredentialRule, Destination};
use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue};

/// Minimum length of a placeholder, in bytes: a short text could occur by chance.
pub(crate) const MIN_PLACEHOLDER: usize = 16;

/// A credential with its key.
pub(crate) struct Credential {
    pub(crate) rule: CredentialRule,
    pub(crate) placeholder: Option<String>,
    pub(crate) key: String,
}

/// Returns whether a text can be a placeholder.
pub(crate) fn is_placeholder(text: &str) -> bool {
    text.len() >= MIN_PLACEHOLDER
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

/// Adds the keys for this destination to the header fields of a request.
pub(crate) fn add_keys(
    headers: &mut HeaderMap,
    destination: &Destination,
    credentials: &[Credential],
) {
    let for_destination = |credential: &&Credential| credential.rule.destination() == destination;
    for credential in credentials.iter().filter(for_destination) {
        if let Some(template) = credential.rule.template() {
            let value = HeaderValue::from_str(&template.value_with(&credential.key));
            let name = HeaderName::from_bytes(template.header().as_bytes());
            if let (Ok(name), Ok(mut value)) = (name, value) {
                value.set_sensitive(true);
                headers.insert(name, value);
            }
        } else if let Some(placeholder) = &credential.placeholder {
            for (name, value) in headers.iter_mut() {
                if let Some(replaced) = replace(name, value, placeholder, &credential.key) {
                    *value = replaced;
                }
            }
        }
    }
}

/// Replaces the placeholder in a field; `None` if it does not contain it. In the base64 text of `Authorization: Basic` too.
fn replace(
    name: &HeaderName,
    value: &HeaderValue,
    placeholder: &str,
    key: &str,
) -> Option<HeaderValue> {
    let text = value.to_str().ok()?;
    let mut replaced = text.replace(placeholder, key);
    if replaced == text
        && name == AUTHORIZATION
        && let Some((scheme, encoded)) = text.split_once(' ')
        && scheme.eq_ignore_ascii_case("basic")
    {
        let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
        if decoded.contains(placeholder) {
            let user = decoded.replace(placeholder, key);
            replaced = format!("{scheme} {}", STANDARD.encode(user));
        }
    }
    if replaced == text {
        return None;
    }
    let mut value = HeaderValue::from_str(&replaced).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Replaces keys in the header fields of a response by their placeholders, against servers that return what they received.
pub(crate) fn remove_keys(headers: &mut HeaderMap, credentials: &[Credential]) {
    for credential in credentials {
        let shown = credential.placeholder.as_deref().unwrap_or("removed");
        for value in headers.values_mut() {
            if let Ok(text) = value.to_str()
                && text.contains(&credential.key)
                && let Ok(replaced) = HeaderValue::from_str(&text.replace(&credential.key, shown))
            {
                *value = replaced;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACEHOLDER: &str = "colibri-placeholder-0123456789";

    fn credential(rule: &str) -> Credential {
        Credential {
            rule: rule.parse().unwrap(),
            placeholder: Some(PLACEHOLDER.to_owned()),
            key: "s3cret".to_owned(),
        }
    }

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn keys_replace_placeholders_for_their_host_only() {
        let bearer = format!("Bearer {PLACEHOLDER}");
        let basic = format!("Basic {}", STANDARD.encode(format!("user:{PLACEHOLDER}")));
        let basic_key = format!("Basic {}", STANDARD.encode("user:s3cret"));
        let twice = format!("{PLACEHOLDER}{PLACEHOLDER}");
        for (rule, host, name, value, expected) in [
            (
                "K@a",
                "a:443",
                "authorization",
                bearer.as_str(),
                "Bearer s3cret",
            ),
            ("K@a", "a:443", "x-key", &twice, "s3crets3cret"),
            ("K@a", "a:443", "authorization", &basic, &basic_key),
            ("K@a", "a:443", "x-key", &basic, &basic),
            ("K@a", "a:443", "authorization", "Basic !", "Basic !"),
            ("K@a", "a:443", "x-key", "none", "none"),
            ("K@a", "b:443", "authorization", &bearer, &bearer),
            ("K@a", "a:8443", "authorization", &bearer, &bearer),
            (
                "K@a=X-Key: token {}",
                "a:443",
                "x-key",
                "mine",
                "token s3cret",
            ),
            ("K@a=X-Key: token {}", "b:443", "x-key", "mine", "mine"),
            ("K@a=X-Key: {}", "a:443", "authorization", &bearer, &bearer),
        ] {
            let mut headers = headers(&[(name, value)]);
            add_keys(&mut headers, &host.parse().unwrap(), &[credential(rule)]);
            assert_eq!(headers[name], expected, "{rule} {host} {name} {value}");
        }
    }

    #[test]
    fn template_sets_one_field() {
        let mut headers = headers(&[("x-key", "1"), ("x-key", "2")]);
        let credentials = [credential("K@a=X-Key: {}")];
        add_keys(&mut headers, &"a:443".parse().unwrap(), &credentials);
        assert_eq!(headers.get_all("x-key").iter().count(), 1);
        remove_keys(&mut headers, &credentials);
        assert_eq!(headers["x-key"], PLACEHOLDER);
    }

    #[test]
    fn keys_and_placeholders_are_validated() {
        assert!(is_placeholder(PLACEHOLDER));
        for text in ["", "a\nb", "a\0", "ä"] {
            assert!(!is_placeholder(text), "{text:?}");
        }
        assert!(!is_placeholder("short") && !is_placeholder(&" ".repeat(20)));
    }
}
