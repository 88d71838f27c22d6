//! The environment of an agent whose network a proxy filters.
//!
//! The shim gives one environment to the whole command: the proxy, the programs that confine, and the agent. The proxy removes
//! its own variables before it executes the rest of the command.

use std::collections::{BTreeMap, BTreeSet};

use colibri_jail_core::{
    CA_BUNDLE_INSIDE, CA_INSIDE, Confinement, EphemeralJail, JailError, NetworkRule,
    PLACEHOLDER_PREFIX, PROXY_PORT, ROOTS_VARIABLE,
};

use crate::{PrepareError, Prepared};

/// Variables that set the proxy of a program for HTTP.
const HTTP_PROXY: &[&str] = &["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"];
/// Variables that set the proxy of a program for all other protocols.
const ALL_PROXY: &[&str] = &["ALL_PROXY", "all_proxy"];
/// Variables with hosts that programs connect to without a proxy.
const NO_PROXY: &[&str] = &["NO_PROXY", "no_proxy"];
/// The loopback addresses of the sandbox: the agent's own servers, and allowed loopback ports of the host.
const LOOPBACK: &str = "localhost,127.0.0.1,::1";
/// Variables with a file of all root certificates: OpenSSL, Go, rustls, Python's requests, curl, git.
const CA_BUNDLE: &[&str] = &[
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
];
/// Variable with a file of certificates that Node.js trusts too (node(1)).
const NODE_CA: &str = "NODE_EXTRA_CA_CERTS";
/// Number of random characters in a placeholder.
const PLACEHOLDER_LENGTH: usize = 24;

/// Sets the variables of the proxy and of its certificates, except those that the request sets. Moves the key of each credential
/// to the variable for the proxy, and sets a placeholder for the agent. `roots_file` has root certificates for the proxy.
pub(crate) fn set_variables(
    env: &mut BTreeMap<String, String>,
    jail: &EphemeralJail,
    roots_file: Option<&str>,
) {
    let names: BTreeSet<&str> = jail.credentials.iter().map(|rule| rule.name()).collect();
    let mut keys = BTreeMap::new();
    for rule in &jail.credentials {
        if let Some(key) = env.get(rule.name()) {
            keys.insert(rule.key_variable(), key.clone());
        }
    }
    env.remove(ROOTS_VARIABLE);
    for name in names {
        env.insert(name.to_owned(), placeholder());
    }
    env.extend(keys);
    let mut set = |names: &[&str], value: &str| {
        for name in names {
            env.entry((*name).to_owned())
                .or_insert_with(|| value.to_owned());
        }
    };
    set(HTTP_PROXY, &format!("http://127.0.0.1:{PROXY_PORT}"));
    if jail.allow.iter().any(NetworkRule::is_tcp) {
        set(ALL_PROXY, &format!("socks5h://127.0.0.1:{PROXY_PORT}"));
    }
    set(NO_PROXY, LOOPBACK);
    // Node reads the other variables only if this one is set (node(1)).
    set(&["NODE_USE_ENV_PROXY"], "1");
    if jail.tls_field().is_some() {
        set(CA_BUNDLE, CA_BUNDLE_INSIDE);
        set(&[NODE_CA], CA_INSIDE);
        if let Some(file) = roots_file {
            env.insert(ROOTS_VARIABLE.to_owned(), file.to_owned());
        }
    }
}

/// Refuses a credential without a key.
///
/// # Errors
/// The request does not set the variable of a credential, or its value cannot be in a header field.
pub(crate) fn check_keys(prepared: &Prepared) -> Result<(), PrepareError> {
    let Confinement::Ephemeral(jail) = &prepared.confinement else {
        return Ok(());
    };
    for rule in &jail.credentials {
        let Some(key) = prepared.env.get(&rule.key_variable()) else {
            let name = rule.name();
            return Err(JailError::Conflict(format!(
                "credential {name} has no key: the request does not set the variable {name}; set it in the environment of the client, or in an environment file"
            ))
            .into());
        };
        rule.check_key(key)?;
    }
    Ok(())
}

/// Returns a new placeholder, by which the proxy finds the place of a key.
fn placeholder() -> String {
    let random = std::iter::repeat_with(fastrand::alphanumeric);
    PLACEHOLDER_PREFIX
        .chars()
        .chain(random.take(PLACEHOLDER_LENGTH))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jail(allow: &[&str], credentials: &[&str]) -> EphemeralJail {
        let mut jail = EphemeralJail::new("colibri-x".parse().unwrap(), "/".parse().unwrap());
        jail.allow = allow.iter().map(|rule| rule.parse().unwrap()).collect();
        jail.credentials = credentials
            .iter()
            .map(|rule| rule.parse().unwrap())
            .collect();
        jail
    }

    fn variables(jail: &EphemeralJail, request: &[(&str, &str)]) -> BTreeMap<String, String> {
        let mut env = request
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        set_variables(&mut env, jail, Some("/roots.pem"));
        env
    }

    #[test]
    fn variables_follow_from_the_rules() {
        let names = |allow: &[&str], credentials: &[&str]| {
            let env = variables(&jail(allow, credentials), &[]);
            let has = |name: &str| env.contains_key(name);
            (
                has("ALL_PROXY"),
                has("SSL_CERT_FILE"),
                has(NODE_CA),
                has(ROOTS_VARIABLE),
            )
        };
        assert_eq!(names(&["a:1"], &[]), (false, false, false, false));
        assert_eq!(names(&["tcp:a:1"], &[]), (true, false, false, false));
        assert_eq!(names(&["http://a/*"], &[]), (false, false, false, false));
        assert_eq!(names(&["https://a/*"], &[]), (false, true, true, true));
        assert_eq!(names(&["a:443"], &["K@a"]), (false, true, true, true));
    }

    #[test]
    fn variables_of_the_request_take_precedence() {
        let jail = jail(&["tcp:a:443", "a:443"], &["K@a"]);
        let own = ["NO_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "HTTP_PROXY"];
        let env = variables(&jail, &own.map(|name| (name, "own")));
        assert!(own.iter().all(|name| env[*name] == "own"));
        assert_eq!(env["no_proxy"], LOOPBACK);
        assert_eq!(env["CURL_CA_BUNDLE"], CA_BUNDLE_INSIDE);
        let forged = variables(&jail, &[(ROOTS_VARIABLE, "/forged")]);
        assert_eq!(forged[ROOTS_VARIABLE], "/roots.pem");
    }

    #[test]
    fn agent_gets_a_placeholder_and_the_proxy_the_key() {
        let jail = jail(&["a:443", "b:443"], &["K@a", "K@b", "L@a=X: {}"]);
        let env = variables(&jail, &[("K", "key"), ("L", "other")]);
        assert_eq!(env["COLIBRI_CREDENTIAL_K"], "key");
        assert_eq!(env["COLIBRI_CREDENTIAL_L"], "other");
        assert!(env["K"].starts_with(PLACEHOLDER_PREFIX) && env["K"] != env["L"]);
        assert_eq!(
            env["K"].len(),
            PLACEHOLDER_PREFIX.len() + PLACEHOLDER_LENGTH
        );
        assert!(
            !env.iter().any(|(name, value)| !name.starts_with("COLIBRI_")
                && ["key", "other"].contains(&value.as_str()))
        );
        // `explain` has no keys.
        let env = variables(&jail, &[]);
        assert!(!env.contains_key("COLIBRI_CREDENTIAL_K"));
    }
}
