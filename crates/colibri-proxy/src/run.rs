//! The part `run`: prepares keys and certificates, starts `serve`, and executes a command.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use colibri_jail_core::{
    CREDENTIAL_PREFIX, CredentialRule, NetworkRule, PLACEHOLDER_PREFIX, ROOTS_VARIABLE,
    is_credential_key,
};
use colibri_sys::descriptors::{place_at, take_inherited};
use colibri_sys::socket_passing;
use rustix::fs::MemfdFlags;

use crate::credential::{MIN_PLACEHOLDER, is_placeholder};
use crate::policy::Policy;
use crate::settings::{CredentialSetting, Settings, receive_message};
use crate::tls::{Authority, to_pem};
use crate::{Execution, ProxyError, failed, lockdown, reporter};

/// Arguments of `run` before `--`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    rules: Vec<NetworkRule>,
    credentials: Vec<CredentialRule>,
    ca: Option<i32>,
    ca_bundle: Option<i32>,
    events: Option<i32>,
}

impl Options {
    fn parse(arguments: &[OsString]) -> Result<Self, ProxyError> {
        let mut options = Self::default();
        let mut arguments = arguments.iter().map(|argument| argument.to_string_lossy());
        while let Some(argument) = arguments.next() {
            if !argument.starts_with("--") {
                options.rules.push(argument.parse()?);
                continue;
            }
            let value = arguments
                .next()
                .ok_or_else(|| format!("{argument} has no value; add one"))?;
            let descriptor = || -> Result<Option<i32>, ProxyError> {
                let number = value.parse().ok().filter(|number| *number > 2);
                let hint =
                    || format!("{argument} {value:?} is not a descriptor; give a number above 2");
                number.map(Some).ok_or_else(|| hint().into())
            };
            match argument.as_ref() {
                "--ca" => options.ca = descriptor()?,
                "--ca-bundle" => options.ca_bundle = descriptor()?,
                "--events" => options.events = descriptor()?,
                "--credential" => options.credentials.push(value.parse()?),
                _ => return Err(format!("{argument} is not an option of run; see --help").into()),
            }
        }
        if options.rules.is_empty() {
            return Err("run has no rule; give at least one, like api.example.com:443".into());
        }
        for credential in &options.credentials {
            if !Policy::allows_https(&options.rules, credential.destination()) {
                let (name, destination) = (credential.name(), credential.destination());
                return Err(format!(
                    "credential {name} is for {destination}, which no rule allows; add the rule {destination}"
                )
                .into());
            }
        }
        Ok(options)
    }
}

/// Reads the key and the placeholder of a credential from the environment.
fn read_credential(
    rule: &CredentialRule,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<CredentialSetting, ProxyError> {
    let name = rule.name();
    let key = variable(&rule.key_variable()).filter(|key| is_credential_key(key)).ok_or_else(|| {
        format!(
            "credential {name} has no key: {} is not set, or is not printable ASCII; set it to the key",
            rule.key_variable()
        )
    })?;
    let placeholder = variable(name);
    if placeholder.as_ref() == Some(&key) {
        return Err(format!(
            "{name} is the key itself; set it to a placeholder, like {PLACEHOLDER_PREFIX}RANDOM"
        )
        .into());
    }
    let placeholder = placeholder.filter(|text| is_placeholder(text));
    if placeholder.is_none() && rule.template().is_none() {
        return Err(format!(
            "credential {name} has no placeholder: {name} is not set to at least {MIN_PLACEHOLDER} letters, digits, '-' or '_'; \
             set it to {PLACEHOLDER_PREFIX}RANDOM, or give the credential a template"
        )
        .into());
    }
    Ok(CredentialSetting {
        rule: rule.to_string(),
        placeholder,
        key,
    })
}

/// A file that the command inherits at a descriptor with a given number.
struct Provided(Option<File>);

impl Provided {
    /// Opens an empty file at a number, before other descriptors can get it.
    fn open(number: Option<i32>) -> Result<Self, ProxyError> {
        let Some(number) = number else {
            return Ok(Self(None));
        };
        let create = || {
            let file = rustix::fs::memfd_create("colibri-ca", MemfdFlags::CLOEXEC)?;
            place_at(file.try_clone()?, number)?;
            Ok(Self(Some(File::from(file))))
        };
        create().map_err(failed(&format!(
            "provide certificates at descriptor {number}"
        )))
    }

    /// Writes the content, which the command reads from its start.
    fn fill(self, content: &[u8]) -> Result<(), ProxyError> {
        let Some(mut file) = self.0 else {
            return Ok(());
        };
        let written = file.write_all(content).and_then(|()| file.rewind());
        written.map_err(failed("write certificates"))
    }
}

/// Starts `serve` and executes the program. `serve` ends when this process ends.
pub(crate) fn run(
    arguments: &[OsString],
    program: &OsStr,
    args: &[OsString],
) -> Result<ExitCode, ProxyError> {
    let core_limit = lockdown::hide_memory().map_err(failed("hide its memory"))?;
    let options = Options::parse(arguments)?;
    // Before any other descriptor is opened, so that none gets the number.
    let events = match options
        .events
        .map(|number| (number, take_inherited(number)))
    {
        // A shim of an earlier release passes none.
        Some((number, None)) => {
            reporter::write_line(&format!(
                "--events {number} is not open; refusals are not recorded, only shown here"
            ));
            None
        }
        Some((_, events)) => events,
        None => None,
    };
    let (ca, ca_bundle) = (
        Provided::open(options.ca)?,
        Provided::open(options.ca_bundle)?,
    );
    let variable = |name: &str| std::env::var(name).ok();
    let credentials = options
        .credentials
        .iter()
        .map(|rule| read_credential(rule, variable))
        .collect::<Result<Vec<_>, _>>()?;
    let roots_file = std::env::var_os(ROOTS_VARIABLE)
        .map(PathBuf::from)
        .filter(|file| file.is_absolute());
    let wants_authority = options.ca.is_some() || options.ca_bundle.is_some();
    let authority = match wants_authority
        || Policy::needs_termination(&options.rules, !credentials.is_empty())
    {
        true => Some(Authority::generate()?),
        false => None,
    };
    let certificate = authority
        .as_ref()
        .map(|authority| to_pem(&authority.certificate))
        .unwrap_or_default();
    let (server_end, sandbox_end) = UnixStream::pair().map_err(failed("create a socket pair"))?;
    let proxy = std::env::current_exe().map_err(failed("find its own program"))?;
    let has_events = events.is_some();
    Command::new(proxy)
        .arg("serve")
        .arg(std::process::id().to_string())
        // The agent's environment may contain secrets.
        .env_clear()
        .envs(std::env::var_os("COLIBRI_AGENT_ID").map(|id| ("COLIBRI_AGENT_ID", id)))
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(server_end)))
        .stdout(events.map_or_else(Stdio::null, Stdio::from))
        .spawn()
        .map_err(failed("start the server"))?;
    let settings = Settings {
        rules: options.rules.iter().map(ToString::to_string).collect(),
        credentials,
        authority_key: authority.map(|authority| authority.key),
        roots_file,
        wants_roots: options.ca_bundle.is_some(),
        events: has_events,
    };
    settings
        .send(&sandbox_end)
        .map_err(failed("send the settings to the server"))?;
    if settings.wants_roots {
        let mut bundle =
            receive_message(&sandbox_end).map_err(failed("receive the certificates"))?;
        bundle.extend_from_slice(certificate.as_bytes());
        ca_bundle.fill(&bundle)?;
    }
    ca.fill(certificate.as_bytes())?;
    let number = socket_passing::keep_open(&sandbox_end).map_err(failed("keep the socket open"))?;
    core_limit.restore();
    let variables = std::env::vars_os().map(|(name, _)| name);
    let own = variables.filter(|name| {
        name == ROOTS_VARIABLE || name.to_string_lossy().starts_with(CREDENTIAL_PREFIX)
    });
    let execution = Execution {
        program,
        args,
        socket: Some(number),
        removed: own.collect(),
    };
    Ok(execution.execute())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Options, String> {
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        Options::parse(&arguments).map_err(|error| error.to_string())
    }

    #[test]
    fn options_and_rules_are_parsed_in_any_order() {
        let arguments = [
            "a:1",
            "--ca",
            "10",
            "--events",
            "12",
            "GET https://b/x/*",
            "--ca-bundle",
            "11",
            "--credential",
            "K@b",
        ];
        let options = parse(&arguments).unwrap();
        assert_eq!(
            (options.ca, options.ca_bundle, options.events),
            (Some(10), Some(11), Some(12))
        );
        assert_eq!((options.rules.len(), options.credentials.len()), (2, 1));
    }

    #[test]
    fn invalid_options_have_a_hint() {
        for (arguments, hint) in [
            (&[][..], "at least one"),
            (&["--ca", "10"], "at least one"),
            (&["a:1", "--ca"], "has no value"),
            (&["a:1", "--ca", "2"], "above 2"),
            (&["a:1", "--events", "x"], "above 2"),
            (&["a:1", "--x", "1"], "see --help"),
            (&["a:x"], "1 to 65535"),
            (&["a:443", "--credential", "K"], "write NAME@HOST"),
            (&["a:443", "--credential", "K@b"], "add the rule b:443"),
            (&["tcp:b:443", "--credential", "K@b"], "add the rule b:443"),
            (&["http://b/*", "--credential", "K@b"], "add the rule b:443"),
        ] {
            let error = parse(arguments).unwrap_err();
            assert!(error.contains(hint), "{arguments:?}: {error}");
        }
    }

    #[test]
    fn credential_needs_a_key_and_a_placeholder() {
        const PLACEHOLDER: &str = "colibri-placeholder-1";
        for (rule, key, placeholder, expected) in [
            ("K@a", Some("key"), Some(PLACEHOLDER), Ok(Some(PLACEHOLDER))),
            ("K@a=X: {}", Some("key"), None, Ok(None)),
            ("K@a=X: {}", Some("key"), Some("short"), Ok(None)),
            ("K@a", None, Some(PLACEHOLDER), Err("has no key")),
            ("K@a", Some(""), Some(PLACEHOLDER), Err("has no key")),
            ("K@a", Some("a\nb"), Some(PLACEHOLDER), Err("has no key")),
            ("K@a", Some("key"), None, Err("no placeholder")),
            ("K@a", Some("key"), Some("short"), Err("no placeholder")),
            (
                "K@a",
                Some(PLACEHOLDER),
                Some(PLACEHOLDER),
                Err("the key itself"),
            ),
        ] {
            let variable = |name: &str| match name {
                "COLIBRI_CREDENTIAL_K" => key.map(str::to_owned),
                "K" => placeholder.map(str::to_owned),
                _ => None,
            };
            match (read_credential(&rule.parse().unwrap(), variable), expected) {
                (Ok(setting), Ok(expected)) => assert_eq!(setting.placeholder.as_deref(), expected),
                (Err(error), Err(hint)) => assert!(error.to_string().contains(hint), "{error}"),
                (found, _) => panic!("{rule} {key:?} {placeholder:?}: {}", found.is_ok()),
            }
        }
    }
}
