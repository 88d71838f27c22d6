//! Confinement as written by a caller ([`JailConfig`]) and after validation ([`Confinement`]).

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::mount;
use crate::{
    CommandLine, CredentialRule, Destination, HomeFile, HostUser, Hostname, HttpScheme, Ip4Policy,
    JailError, JailName, JailOp, JailPath, JailUser, Limits, Mount, MountConfig, Network,
    NetworkRule, Restriction, View,
};

/// A confinement as written in a request or a file. An unknown field is an error, because a misspelled field must not
/// weaken the confinement.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct JailConfig {
    /// Name of a persistent jail to enter. Takes precedence over `path`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Root directory of a new jail, which is removed when the command ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Template of a new jail's root directory, instead of `path`: each agent gets its own root, made from it and removed
    /// when the command ends (FreeBSD).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Mount a devfs with few devices at `/dev` of `path`; a root from a `template` always has one (FreeBSD).
    #[serde(skip_serializing_if = "is_default")]
    pub devfs: bool,
    /// Mount a fdescfs with the option `linrdlnk` at `/dev/fd`, which a devfs has; with `path` or `template` only (FreeBSD).
    #[serde(skip_serializing_if = "is_default")]
    pub fdescfs: bool,
    /// `inherit` (default), `disable`, `new`, or addresses separated by `,`; with `path` or `template` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip4: Option<String>,
    /// The user inside the jail: a name, or with bubblewrap also `UID` or `UID:GID`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Directories and files of the host to mount in the jail; with `path` or `template` only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<MountConfig>,
    /// Working directory of the agent inside the jail. Default `/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Host name inside the jail; with `path` or `template` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The only destinations the agent may connect to, each a rule like `HOST:PORT`, through a proxy; with `path` or `template`
    /// only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// Keys that the agent never has, each a rule like `NAME@HOST` or `NAME@HOST=HEADER: TEMPLATE`: the proxy adds the value of
    /// the variable NAME to requests for HOST over TLS, and the agent gets a placeholder in the variable (Linux). Allows HOST,
    /// if no rule of `allow` does.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub credentials: Vec<String>,
    /// `none`, `host`, or `allow` for the destinations of `allow` only; with `path` or `template` only. Default with
    /// bubblewrap: `allow` if there are destinations, else `none`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// The part of the host that the root `/` shows: `minimal` (default) or `host`; with bubblewrap only, as the fields below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub view: Option<String>,
    /// Directory of the host that is the agent's home and remains after its end. Default: a private, empty one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub home: Option<String>,
    /// Files that the home contains at the first start. Without `home`, the home is a directory of the agent, which is removed
    /// with it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub home_files: Vec<HomeFile>,
    /// Paths in the jail that the agent sees empty, besides those that are always masked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<String>,
    /// Protected paths of writable mounts that the agent may write, like `/work/.git/hooks`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unprotect: Vec<String>,
    /// Names of restrictions that do not apply; [`Restriction::ALL`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lift: Vec<String>,
    /// Refuse to start the agent if the kernel cannot enforce a restriction that is not lifted.
    #[serde(skip_serializing_if = "is_default")]
    pub strict: bool,
    /// Resource limits. They apply without a jail too.
    #[serde(skip_serializing_if = "is_default")]
    pub limits: Limits,
    /// Start the agent even if some of `limits` cannot be enforced.
    #[serde(skip_serializing_if = "is_default")]
    pub best_effort: bool,
}

/// Directory of the roots that are made from templates. Root owns it, and only root can list it.
pub const JAIL_ROOTS: &str = "/var/run/colibri-roots";
/// Returns the root directory that is made from a template for the jail with this name.
#[must_use]
pub fn root_of_jail(name: &JailName) -> JailPath {
    JailPath(format!("{JAIL_ROOTS}/{name}"))
}

/// Directories of every root from a template that an agent may write, besides its user's home.
const WRITABLE: [&str; 3] = ["/tmp", "/var/tmp", "/var/run"];

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn parse<T: FromStr<Err = JailError>>(text: &Option<String>) -> Result<Option<T>, JailError> {
    text.as_deref().map(str::parse).transpose()
}

/// A jail that is created for one command and removed with it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EphemeralJail {
    /// Its name, unique on the host.
    pub name: JailName,
    /// Its root directory, or the template of it.
    pub path: JailPath,
    /// Whether `path` is a template, see [`EphemeralJail::root`].
    pub is_template: bool,
    /// Directories inside a root from a template that are private, writable and empty at first, unless the root is a
    /// writable copy. The caller adds the user's home after validation.
    pub writable: Vec<JailPath>,
    /// Whether a devfs is mounted at `/dev`.
    pub devfs: bool,
    /// Whether a fdescfs is mounted at `/dev/fd`.
    pub fdescfs: bool,
    /// Its IPv4 policy.
    pub ip4: Ip4Policy,
    /// The user inside it.
    pub user: Option<JailUser>,
    /// Mounts of host directories and files, parents before children.
    pub mounts: Vec<Mount>,
    /// Host name.
    pub hostname: Option<Hostname>,
    /// The only destinations the jail may connect to; if not empty, the jail has no network except a proxy.
    pub allow: Vec<NetworkRule>,
    /// Keys that the proxy adds to requests. `allow` has a rule for the host of each.
    pub credentials: Vec<CredentialRule>,
    /// Directories inside the jail that the agent sees empty, see [`crate::masked_paths`]. They must exist. The caller
    /// adds them after validation; an engine that cannot mask refuses them.
    pub masked: Vec<JailPath>,
    /// What a sandbox shows and permits.
    pub sandbox: Box<SandboxOptions>,
}

/// What a sandbox of Linux shows and permits, besides its mounts. The caller adds the fields about the host after validation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct SandboxOptions {
    /// The part of the host that the root `/` shows.
    pub view: View,
    /// Whether the request names the view.
    pub names_view: bool,
    /// Directory of the host that is the agent's home.
    pub home: Option<JailPath>,
    /// Whether the home contains files at the first start.
    pub has_home_files: bool,
    /// Paths inside that the agent sees empty, if they exist.
    pub denied: Vec<JailPath>,
    /// Protected paths that the agent may write.
    pub unprotected: Vec<JailPath>,
    /// Restrictions that do not apply, sorted.
    pub lifted: Vec<Restriction>,
    /// Whether a restriction that the kernel cannot enforce is an error.
    pub strict: bool,
    /// Set by the caller: the engine's own command runs, so that colibri-sandbox completes the sandbox.
    pub completed: bool,
    /// Set by the caller: paths inside that the agent sees empty, which the host may remove later.
    pub hidden: Vec<JailPath>,
    /// Set by the caller: directories of repositories in writable mounts, besides `.git`.
    pub git_directories: Vec<JailPath>,
    /// Set by the caller: paths in writable mounts that are read-only, because protected files refer to them.
    pub read_only: Vec<JailPath>,
    /// Set by the caller: path of the agent's home inside.
    pub home_path: Option<JailPath>,
    /// Set by the caller: files of the host that the minimal view shows too, at the same path.
    pub shown: Vec<JailPath>,
    /// Set by the caller: the user of the agent's processes on the host.
    pub host_user: HostUser,
    /// Set by the caller: the agent has a terminal, which belongs to it alone.
    pub terminal: bool,
    /// Set by the caller: maximum number of open files of each process.
    pub open_files: Option<u32>,
    /// Set by the caller: maximum number of processes and threads of a private user.
    pub processes: Option<u32>,
}

impl SandboxOptions {
    /// Returns whether a restriction applies.
    #[must_use]
    pub fn applies(&self, restriction: Restriction) -> bool {
        !self.lifted.contains(&restriction)
    }

    /// Returns the first option that a request sets, which an engine or a privilege backend may refuse.
    #[must_use]
    pub fn first_requested(&self) -> Option<&'static str> {
        [
            (self.names_view, "view"),
            (self.home.is_some(), "home"),
            (self.has_home_files, "home_files"),
            (!self.denied.is_empty(), "deny"),
            (!self.unprotected.is_empty(), "unprotect"),
            (!self.lifted.is_empty(), "lift"),
            (self.strict, "strict"),
        ]
        .into_iter()
        .find_map(|(is_set, name)| is_set.then_some(name))
    }
}

impl EphemeralJail {
    /// Creates a jail with the default of every setting.
    #[must_use]
    pub fn new(name: JailName, path: JailPath) -> Self {
        Self {
            name,
            path,
            is_template: false,
            writable: Vec::new(),
            devfs: false,
            fdescfs: false,
            ip4: Ip4Policy::default(),
            user: None,
            mounts: Vec::new(),
            hostname: None,
            allow: Vec::new(),
            credentials: Vec::new(),
            masked: Vec::new(),
            sandbox: Box::default(),
        }
    }

    /// Returns whether there are mounts, a host name, a network filter or a prepared root, which a privilege backend may
    /// refuse.
    #[must_use]
    pub fn is_extended(&self) -> bool {
        !self.mounts.is_empty()
            || self.hostname.is_some()
            || !self.allow.is_empty()
            || self.first_root_field().is_some()
    }

    /// Returns the field by which the proxy terminates TLS connections of the agent, which must then trust its certificates.
    #[must_use]
    pub fn tls_field(&self) -> Option<&'static str> {
        let checks_requests = |rule: &NetworkRule| rule.request_scheme() == Some(HttpScheme::Https);
        match self.credentials.is_empty() {
            false => Some("credentials"),
            true => (self.allow.iter().any(checks_requests)).then_some("allow"),
        }
    }

    /// Returns the first field of the root directory that a privilege backend or an engine may refuse.
    #[must_use]
    pub fn first_root_field(&self) -> Option<&'static str> {
        [
            (self.is_template, "template"),
            (self.devfs, "devfs"),
            (self.fdescfs, "fdescfs"),
        ]
        .into_iter()
        .find_map(|(is_set, name)| is_set.then_some(name))
    }

    /// Returns the root directory on the host. That of a template belongs to this jail alone.
    #[must_use]
    pub fn root(&self) -> JailPath {
        match self.is_template {
            true => root_of_jail(&self.name),
            false => self.path.clone(),
        }
    }

    /// Returns the directory of `writable` above `target`, in which the monitor creates the mount point.
    #[must_use]
    pub fn writable_parent(&self, target: &JailPath) -> Option<&JailPath> {
        let mut parents = self.writable.iter();
        parents.find(|parent| target != *parent && target.is_in(parent.as_str()))
    }
}

/// A validated confinement.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Confinement {
    /// No jail.
    None,
    /// A jail that exists before and after the command.
    Persistent {
        /// The jail.
        name: JailName,
        /// The user inside it.
        user: Option<JailUser>,
    },
    /// A jail that is created for one command and removed with it.
    Ephemeral(EphemeralJail),
}

impl JailConfig {
    /// Returns whether this requests a jail; without one only the limits apply.
    #[must_use]
    pub fn is_jail(&self) -> bool {
        self.name.is_some() || self.path.is_some() || self.template.is_some()
    }

    /// Fills the gaps of this configuration from `weaker`, for example a profile's. `name`, `path` and `template` are
    /// alternatives, and so are mounts with the same target: the weaker one is dropped. Lists are concatenated, weaker first.
    #[must_use]
    pub fn or(self, mut weaker: Self) -> Self {
        if self.is_jail() {
            (weaker.name, weaker.path, weaker.template) = (None, None, None);
        }
        let is_replaced = |mount: &MountConfig| {
            self.mounts
                .iter()
                .any(|stronger| stronger.target_or_source() == mount.target_or_source())
        };
        weaker.mounts.retain(|mount| !is_replaced(mount));
        weaker.mounts.extend(self.mounts);
        weaker.allow.extend(self.allow);
        weaker.credentials.extend(self.credentials);
        let home_files = &self.home_files;
        weaker.home_files.retain(|file| {
            let is_same = |stronger: &HomeFile| stronger.target == file.target;
            !home_files.iter().any(is_same)
        });
        weaker.home_files.extend(self.home_files);
        weaker.deny.extend(self.deny);
        weaker.unprotect.extend(self.unprotect);
        weaker.lift.extend(self.lift);
        // Both choose the network.
        if self.network.is_some() || self.ip4.is_some() {
            (weaker.network, weaker.ip4) = (None, None);
        }
        Self {
            name: self.name.or(weaker.name),
            path: self.path.or(weaker.path),
            template: self.template.or(weaker.template),
            devfs: self.devfs || weaker.devfs,
            fdescfs: self.fdescfs || weaker.fdescfs,
            ip4: self.ip4.or(weaker.ip4),
            user: self.user.or(weaker.user),
            mounts: weaker.mounts,
            workdir: self.workdir.or(weaker.workdir),
            hostname: self.hostname.or(weaker.hostname),
            allow: weaker.allow,
            credentials: weaker.credentials,
            network: self.network.or(weaker.network),
            view: self.view.or(weaker.view),
            home: self.home.or(weaker.home),
            home_files: weaker.home_files,
            deny: weaker.deny,
            unprotect: weaker.unprotect,
            lift: weaker.lift,
            strict: self.strict || weaker.strict,
            limits: self.limits.or(weaker.limits),
            best_effort: self.best_effort || weaker.best_effort,
        }
    }

    /// Validates every value. `ephemeral` is the name of the new jail, if this requests one.
    ///
    /// # Errors
    /// The first value that is invalid, conflicts with another, or applies to nothing.
    pub fn confinement(&self, ephemeral: &JailName) -> Result<Confinement, JailError> {
        let name: Option<JailName> = parse(&self.name)?;
        let path: Option<JailPath> = parse(&self.path)?;
        let template: Option<JailPath> = parse(&self.template)?;
        let ip4: Option<Ip4Policy> = parse(&self.ip4)?;
        let user: Option<JailUser> = parse(&self.user)?;
        let allow = self.allow.iter().map(|text| text.parse());
        let mut allow: Vec<NetworkRule> = allow.collect::<Result<_, _>>()?;
        let credentials = credentials(&self.credentials)?;
        allow.extend(implied_rules(&credentials, &allow));
        // In the order of their text, which `explain` shows.
        allow.sort_by_cached_key(ToString::to_string);
        allow.dedup();
        let mounts = mount::validate(&self.mounts)?;
        let hostname = parse(&self.hostname)?;
        let network: Option<Network> = parse(&self.network)?;
        let sandbox = self.sandbox()?;
        self.workdir()?;
        self.limits.check()?;
        if path.is_some() && template.is_some() {
            return Err(JailError::Conflict(
                "`path` and `template` are alternatives; remove one of them".to_owned(),
            ));
        }
        let is_template = template.is_some();
        match (name, path.or(template)) {
            (Some(name), _) => match self.first_setup_field() {
                Some(field) => Err(JailError::Conflict(format!(
                    "`{field}` applies to a new jail, and jail {name} exists already; remove `{field}`, or replace `name` by `path` to create a jail"
                ))),
                None => Ok(Confinement::Persistent { name, user }),
            },
            (None, Some(path)) => {
                let ip4 = match (ip4, network) {
                    (Some(ip4), Some(_)) => {
                        return Err(JailError::Conflict(format!(
                            "`ip4` {ip4} and `network` both choose the jail's network; remove one of them"
                        )));
                    }
                    // Without a destination, nothing is allowed.
                    (None, Some(Network::None | Network::Allow)) => Some(Ip4Policy::Disable),
                    (None, Some(Network::Host)) => Some(Ip4Policy::Inherit),
                    (ip4, None) => ip4,
                };
                let filter = match self.allow.is_empty() {
                    true => "credentials",
                    false => "allow",
                };
                if network == Some(Network::None) && !allow.is_empty() {
                    return Err(JailError::Conflict(format!(
                        "`network` none conflicts with `{filter}`; remove one of them"
                    )));
                }
                let ip4 = match (ip4, allow.is_empty()) {
                    (ip4, true) => ip4.unwrap_or_default(),
                    // An engine or backend that does not support the proxy must not open the network.
                    (None | Some(Ip4Policy::Disable), false) => Ip4Policy::Disable,
                    (Some(other), false) => {
                        return Err(JailError::Conflict(format!(
                            "`{filter}` filters the jail's network and conflicts with `ip4` {other}; remove one of them"
                        )));
                    }
                };
                let writable = WRITABLE.iter().filter(|_| is_template);
                Ok(Confinement::Ephemeral(EphemeralJail {
                    is_template,
                    writable: writable.map(|path| JailPath((*path).to_owned())).collect(),
                    devfs: self.devfs || is_template,
                    fdescfs: self.fdescfs,
                    ip4,
                    user,
                    mounts,
                    hostname,
                    allow,
                    credentials,
                    sandbox: Box::new(sandbox),
                    ..EphemeralJail::new(ephemeral.clone(), path)
                }))
            }
            (None, None) => {
                let user = self.user.as_ref().map(|_| "user");
                let workdir = self.workdir.as_ref().map(|_| "workdir");
                match workdir.or(self.first_setup_field()).or(user) {
                    Some(field) => Err(JailError::Conflict(format!(
                        "`{field}` needs a jail; add `path`, or remove `{field}`"
                    ))),
                    None => Ok(Confinement::None),
                }
            }
        }
    }

    /// Returns the agent's working directory inside the jail.
    ///
    /// # Errors
    /// The path is invalid.
    pub fn workdir(&self) -> Result<Option<JailPath>, JailError> {
        parse(&self.workdir)
    }

    /// Returns the options of a sandbox, without those that the caller sets.
    fn sandbox(&self) -> Result<SandboxOptions, JailError> {
        fn parse_all<T: FromStr<Err = JailError>>(texts: &[String]) -> Result<Vec<T>, JailError> {
            texts.iter().map(|text| text.parse()).collect()
        }
        let mut lifted: Vec<Restriction> = parse_all(&self.lift)?;
        if lifted.contains(&Restriction::UserNamespaces) {
            // A landlocked process cannot mount, which a nested sandbox does (landlock(7)).
            lifted.push(Restriction::Landlock);
        }
        lifted.sort_unstable();
        lifted.dedup();
        self.home_files.iter().try_for_each(HomeFile::check)?;
        Ok(SandboxOptions {
            has_home_files: !self.home_files.is_empty(),
            view: parse(&self.view)?.unwrap_or_default(),
            names_view: self.view.is_some(),
            home: parse(&self.home)?,
            denied: parse_all(&self.deny)?,
            unprotected: parse_all(&self.unprotect)?,
            lifted,
            strict: self.strict,
            ..SandboxOptions::default()
        })
    }

    /// Returns the first field that applies to a new jail only.
    fn first_setup_field(&self) -> Option<&'static str> {
        [
            (self.template.is_some(), "template"),
            (self.devfs, "devfs"),
            (self.fdescfs, "fdescfs"),
            (self.ip4.is_some(), "ip4"),
            (!self.mounts.is_empty(), "mounts"),
            (self.hostname.is_some(), "hostname"),
            (!self.allow.is_empty(), "allow"),
            (!self.credentials.is_empty(), "credentials"),
            (self.network.is_some(), "network"),
        ]
        .into_iter()
        .find_map(|(is_set, name)| is_set.then_some(name))
        .or(self.sandbox().ok()?.first_requested())
    }
}

/// Validates credentials. A variable with keys for several hosts has the same key for all, and a host takes one key in a header.
fn credentials(texts: &[String]) -> Result<Vec<CredentialRule>, JailError> {
    let parsed = texts.iter().map(|text| text.parse());
    let mut credentials: Vec<CredentialRule> = parsed.collect::<Result<_, _>>()?;
    // In the order of their text, which `explain` shows.
    credentials.sort_by_cached_key(ToString::to_string);
    credentials.dedup();
    Ok(credentials)
}

/// Returns a rule for each host of a credential to which no rule allows requests over TLS.
fn implied_rules(credentials: &[CredentialRule], allow: &[NetworkRule]) -> Vec<NetworkRule> {
    let is_allowed = |destination: &Destination| {
        allow.iter().any(|rule| {
            rule.allows_connections(destination)
                || rule.restricts_requests(HttpScheme::Https, destination)
        })
    };
    let destinations = credentials.iter().map(CredentialRule::destination);
    destinations
        .filter(|destination| !is_allowed(destination))
        .map(NetworkRule::connections_to)
        .collect()
}

impl Confinement {
    /// Returns the operation that runs `command` confined, in `workdir` inside the jail; `None` without a jail.
    #[must_use]
    pub fn into_op(self, workdir: Option<JailPath>, command: CommandLine) -> Option<JailOp> {
        match self {
            Self::None => None,
            Self::Persistent { name, user } => Some(JailOp::Attach {
                name,
                user,
                workdir,
                command,
            }),
            Self::Ephemeral(jail) => Some(JailOp::Create {
                jail,
                workdir,
                command,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jail_name_takes_precedence_over_path() {
        let config = |name: &str, path: &str, ip4: &str, user: &str| {
            let value = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
            JailConfig {
                name: value(name),
                path: value(path),
                ip4: value(ip4),
                user: value(user),
                ..JailConfig::default()
            }
        };
        let ephemeral: JailName = "colibri-x".parse().unwrap();
        let persistent = Ok(Confinement::Persistent {
            name: "web".parse().unwrap(),
            user: None,
        });
        for (config, expected) in [
            (config("", "", "", ""), Ok(Confinement::None)),
            (config("web", "", "", ""), persistent.clone()),
            (config("web", "/srv", "", ""), persistent),
            (
                config("web", "/srv", "inherit", ""),
                Err("`ip4` applies to a new jail"),
            ),
            (
                config("web", "srv", "", ""),
                Err("path \"srv\" is relative"),
            ),
            (config("", "", "new", ""), Err("`ip4` needs a jail")),
            (config("", "", "", "root"), Err("`user` needs a jail")),
            (
                config("", "/srv", "", ""),
                Ok(Confinement::Ephemeral(EphemeralJail::new(
                    ephemeral.clone(),
                    "/srv".parse().unwrap(),
                ))),
            ),
        ] {
            match (config.confinement(&ephemeral), expected) {
                (Err(error), Err(expected)) => {
                    assert!(error.to_string().starts_with(expected), "{error}");
                }
                (confinement, expected) => {
                    assert_eq!(confinement.ok(), expected.ok(), "{config:?}");
                }
            }
        }
    }

    #[test]
    fn setup_without_new_jail_is_refused() {
        let ephemeral: JailName = "colibri-x".parse().unwrap();
        for (field, value) in [
            ("mounts", r#"[{"source":"/w"}]"#),
            ("hostname", r#""h""#),
            ("allow", r#"["a:1"]"#),
            ("credentials", r#"["K@a"]"#),
            ("workdir", r#""/w""#),
        ] {
            let with = |jail: &str| {
                let text = format!("{{{jail}\"{field}\":{value}}}");
                let config: JailConfig = serde_json::from_str(&text).unwrap();
                assert_eq!(
                    serde_json::from_str::<JailConfig>(&serde_json::to_string(&config).unwrap())
                        .unwrap(),
                    config
                );
                config.confinement(&ephemeral)
            };
            let error = with("").unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("`{field}` needs a jail")),
                "{error}"
            );
            assert!(with(r#""path":"/","#).is_ok());
            let name = with(r#""name":"web","#);
            if field == "workdir" {
                assert!(name.is_ok());
            } else {
                let error = name.unwrap_err().to_string();
                let expected = format!("`{field}` applies to a new jail, and jail web exists");
                assert!(error.starts_with(&expected), "{error}");
            }
        }
    }

    #[test]
    fn filtered_network_disables_ip4() {
        let ephemeral: JailName = "colibri-x".parse().unwrap();
        let ip4 = |text: &str| {
            let config: JailConfig = serde_json::from_str(text).unwrap();
            config
                .confinement(&ephemeral)
                .map(|confinement| match confinement {
                    Confinement::Ephemeral(jail) => (jail.ip4, jail.allow.len()),
                    other => panic!("{other:?}"),
                })
        };
        assert_eq!(
            ip4(r#"{"path":"/","allow":["a:1","A:1","b:1"]}"#),
            Ok((Ip4Policy::Disable, 2))
        );
        assert_eq!(
            ip4(r#"{"path":"/","allow":["a:1"],"ip4":"disable"}"#),
            Ok((Ip4Policy::Disable, 1))
        );
        for other in ["inherit", "new", "192.0.2.7"] {
            let text = format!(r#"{{"path":"/","allow":["a:1"],"ip4":"{other}"}}"#);
            let error = ip4(&text).unwrap_err().to_string();
            assert!(
                error.contains(&format!("conflicts with `ip4` {other}")),
                "{error}"
            );
        }
    }

    #[test]
    fn credential_allows_its_host_unless_a_rule_does() {
        let ephemeral: JailName = "colibri-x".parse().unwrap();
        let rules = |text: &str| {
            let config: JailConfig = serde_json::from_str(text).unwrap();
            let confinement = config
                .confinement(&ephemeral)
                .map_err(|error| error.to_string())?;
            let Confinement::Ephemeral(jail) = confinement else {
                panic!("{text}");
            };
            let credentials = jail.credentials.iter().map(ToString::to_string);
            let rules = jail.allow.iter().map(ToString::to_string);
            Ok::<_, String>((
                credentials.collect::<Vec<_>>().join(" "),
                rules.collect::<Vec<_>>().join(" "),
            ))
        };
        for (fields, credentials, allow) in [
            (r#""credentials":["K@a","K@A:443"]"#, "K@a:443", "a:443"),
            (
                r#""credentials":["K@a"],"allow":["b:1"]"#,
                "K@a:443",
                "a:443 b:1",
            ),
            (
                r#""credentials":["K@a"],"allow":["*.a:443","tcp:a:443"]"#,
                "K@a:443",
                "*.a:443 a:443 tcp:a:443",
            ),
            (
                r#""credentials":["K@x.a"],"allow":["*.a:443"]"#,
                "K@x.a:443",
                "*.a:443",
            ),
            (
                r#""credentials":["K@a"],"allow":["GET https://a/x/*"]"#,
                "K@a:443",
                "GET https://a/x/*",
            ),
            (
                r#""credentials":["K@[::1]:8443","L@127.0.0.1:9"]"#,
                "K@[::1]:8443 L@127.0.0.1:9",
                "127.0.0.1:9 [::1]:8443",
            ),
        ] {
            let found = rules(&format!(r#"{{"path":"/",{fields}}}"#));
            assert_eq!(
                found,
                Ok((credentials.to_owned(), allow.to_owned())),
                "{fields}"
            );
        }
        for (fields, error) in [
            (r#""credentials":["K"]"#, "write NAME@HOST"),
            (
                r#""credentials":["K@a"],"network":"none""#,
                "`network` none conflicts with `credentials`",
            ),
            (
                r#""credentials":["K@a"],"ip4":"inherit""#,
                "`credentials` filters the jail's network",
            ),
        ] {
            let found = rules(&format!(r#"{{"path":"/",{fields}}}"#)).unwrap_err();
            assert!(found.contains(error), "{found}");
        }
    }

    #[test]
    fn limits_apply_without_jail() {
        let ephemeral: JailName = "colibri-x".parse().unwrap();
        let config: JailConfig = serde_json::from_str(r#"{"limits":{"open_files":64}}"#).unwrap();
        assert!(!config.is_jail());
        assert_eq!(config.confinement(&ephemeral), Ok(Confinement::None));
        let config: JailConfig = serde_json::from_str(r#"{"limits":{"open_files":1}}"#).unwrap();
        assert!(config.confinement(&ephemeral).is_err());
    }

    #[test]
    fn unknown_field_is_refused_and_missing_is_default() {
        let parse = serde_json::from_str::<JailConfig>;
        assert_eq!(parse("{}").unwrap(), JailConfig::default());
        let message = parse(r#"{"pth":"/srv"}"#).unwrap_err().to_string();
        assert!(message.contains("unknown field `pth`"), "{message}");
    }
}
