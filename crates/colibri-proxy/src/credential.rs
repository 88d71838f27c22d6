//! Adds keys to requests, and removes them from the heads of responses. Pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use colibri_jail_core::{CredentialRule, Destination};
use hyper::ext::ReasonPhrase;
use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue};
use hyper::{HeaderMap, Response};

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

/// Minimum length of a part of base64 text that is searched, in characters: a shorter one could occur by chance.
const MIN_ENCODED: usize = 6;
/// The value of a header field that contained a key in another form.
const REMOVED: &str = "removed";

/// Removes keys from the head of a response, against servers that return what they received: from the reason phrase, from names,
/// and from values, where the placeholder replaces an exact key.
pub(crate) fn remove_keys<B>(response: &mut Response<B>, credentials: &[Credential]) {
    if credentials.is_empty() {
        return;
    }
    // hyper forwards the text of the server; without it, it sends the standard one.
    response.extensions_mut().remove::<ReasonPhrase>();
    let headers = response.headers_mut();
    for credential in credentials {
        let key = credential.key.as_bytes();
        let named: Vec<HeaderName> = headers
            .keys()
            .filter(|name| contains_any_case(name.as_str().as_bytes(), key))
            .cloned()
            .collect();
        for name in named {
            headers.remove(name);
        }
        let encoded = encoded_parts(key);
        let shown = credential.placeholder.as_deref().unwrap_or(REMOVED);
        for value in headers.values_mut() {
            if let Ok(text) = value.to_str()
                && text.contains(&credential.key)
                && let Ok(replaced) = HeaderValue::from_str(&text.replace(&credential.key, shown))
            {
                *value = replaced;
            }
            if reveals(value.as_bytes(), key, &encoded) {
                *value = HeaderValue::from_static(REMOVED);
            }
        }
    }
}

/// Returns whether a value contains the key, in any case, or one of the parts of its base64 text.
fn reveals(value: &[u8], key: &[u8], encoded: &[String]) -> bool {
    // The alphabet for URLs differs in two characters (RFC 4648, section 5).
    let standard = |byte: &u8| match byte {
        b'-' => b'+',
        b'_' => b'/',
        other => *other,
    };
    let value_in_standard: Vec<u8> = value.iter().map(standard).collect();
    let has_part = |part: &String| {
        let mut windows = value_in_standard.windows(part.len());
        windows.any(|window| window == part.as_bytes())
    };
    contains_any_case(value, key) || encoded.iter().any(has_part)
}

/// Returns whether a text contains the key with upper- or lower-case letters. A key is not empty.
fn contains_any_case(text: &[u8], key: &[u8]) -> bool {
    let mut windows = text.windows(key.len().max(1));
    windows.any(|window| window.eq_ignore_ascii_case(key))
}

/// Returns the base64 characters of the key that do not depend on the text around it, for each of the three positions of its
/// first byte in a group of three bytes.
fn encoded_parts(key: &[u8]) -> Vec<String> {
    let part = |before: usize| {
        let mut padded = vec![0; before];
        padded.extend_from_slice(key);
        // A character has 6 bits of the text; those of the first and the last byte may be shared with other text.
        let start = (8 * before).div_ceil(6);
        let end = 8 * padded.len() / 6;
        let encoded = STANDARD.encode(padded);
        encoded.get(start..end).map(str::to_owned)
    };
    let parts = (0..3).filter_map(part);
    parts.filter(|part| part.len() >= MIN_ENCODED).collect()
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
        let headers = without_keys(headers, &credentials);
        assert_eq!(headers["x-key"], PLACEHOLDER);
    }

    /// Returns the header fields of a response without keys.
    fn without_keys(headers: HeaderMap, credentials: &[Credential]) -> HeaderMap {
        let mut response = Response::new(());
        *response.headers_mut() = headers;
        remove_keys(&mut response, credentials);
        std::mem::take(response.headers_mut())
    }

    #[test]
    fn values_with_a_form_of_the_key_are_replaced() {
        let encode = |text: &str| STANDARD.encode(text);
        let mut credentials = [credential("K@a")];
        credentials[0].key = "s3cret?>~key".to_owned();
        let kept = [
            encode("s3cret"),
            encode("other-user:other-password"),
            "s3cret".to_owned(),
            "s3cret?>~ke".to_owned(),
            String::new(),
        ];
        for value in kept {
            let headers = without_keys(headers(&[("x-a", &value)]), &credentials);
            assert_eq!(headers["x-a"], value);
        }
        let exact = without_keys(headers(&[("x-a", "k=s3cret?>~key;")]), &credentials);
        assert_eq!(exact["x-a"], format!("k={PLACEHOLDER};"));
        let mut removed = vec!["S3CRET?>~KEY".to_owned(), "x s3Cret?>~keY y".to_owned()];
        for before in ["", "u", "us", "use"] {
            for after in ["", "1", "12", "123"] {
                let encoded = encode(&format!("{before}s3cret?>~key{after}"));
                let for_urls = encoded.replace('+', "-").replace('/', "_");
                removed.extend([
                    format!("Basic {encoded}"),
                    format!("a={};", encoded.trim_end_matches('=')),
                    for_urls,
                ]);
            }
        }
        for value in removed {
            let headers = without_keys(headers(&[("x-a", &value)]), &credentials);
            assert_eq!(headers["x-a"], REMOVED, "{value}");
        }
        let mut latin = HeaderMap::new();
        let value = HeaderValue::from_bytes(b"\xe9s3cret?>~key").unwrap();
        latin.insert("x-a", value);
        assert_eq!(without_keys(latin, &credentials)["x-a"], REMOVED);
    }

    #[test]
    fn names_and_reason_phrases_with_the_key_are_removed() {
        let credentials = [credential("K@a")];
        let mut response = Response::new(());
        *response.headers_mut() = headers(&[("x-s3cret-y", "1"), ("x-other", "2")]);
        let reason = ReasonPhrase::from_static(b"s3cret");
        response.extensions_mut().insert(reason.clone());
        remove_keys(&mut response, &[]);
        assert_eq!(response.extensions().get(), Some(&reason));
        remove_keys(&mut response, &credentials);
        assert_eq!(response.extensions().get::<ReasonPhrase>(), None);
        let names: Vec<_> = response.headers().keys().collect();
        assert_eq!(names, ["x-other"]);
    }

    #[test]
    fn encoded_parts_do_not_depend_on_other_text() {
        let parts = encoded_parts(b"s3cret");
        assert_eq!(parts, ["czNjcmV0", "MzY3Jld", "zM2NyZX"]);
        assert_eq!(encoded_parts(b"abcde").len(), 3);
        assert!(encoded_parts(b"a").is_empty());
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
