//! Advice for a host with FreeBSD: security advisories of the kernel, restrictions of persistent jails, and directories that
//! jails share. Other hosts have no findings.

mod advisories;
mod restrictions;
mod sharing;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use colibri_jail_core::{Confinement, JailName};
use colibri_priv::{Finding, probe};
use colibri_types::AgentSpec;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use self::advisories::DescriptorFix;
use self::sharing::{JailList, MountList};
use super::{ConfinementOwner, KnownConfinement, PROGRAM_TIMEOUT};

const FREEBSD_VERSION: &str = "/bin/freebsd-version";
const JLS: &str = "/usr/sbin/jls";
const MOUNT: &str = "/sbin/mount";
const SYSCTL: &str = "/sbin/sysctl";
/// Timeout of all checks together.
const ADVICE_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of persistent jails whose restrictions are read.
const MAX_JAILS: usize = 16;
/// Maximum number of owners of confinements that one list in a finding names.
const MAX_NAMED_OWNERS: usize = 8;

/// Returns the release of the running kernel, such as `15.1-RELEASE-p4`; `None` on another system.
fn running_kernel() -> Option<String> {
    let system = rustix::system::uname();
    let is_freebsd = system.sysname().to_bytes() == b"FreeBSD";
    is_freebsd.then(|| system.release().to_string_lossy().into_owned())
}

/// Returns a warning for each running agent with which a new one would share a directory, if this kernel does not restrict
/// the directory descriptors that jails exchange.
pub(crate) fn sharing_warnings(confinement: &Confinement, running: &[AgentSpec]) -> Vec<String> {
    match running_kernel() {
        Some(kernel) => sharing::warnings(confinement, running, DescriptorFix::of_kernel(&kernel)),
        None => Vec::new(),
    }
}

/// Returns all findings. `known` are the confinements of running agents and of the settings file.
pub(super) async fn findings(known: &[KnownConfinement]) -> Vec<Finding> {
    let Some(kernel) = running_kernel() else {
        return Vec::new();
    };
    let checked = tokio::time::timeout(ADVICE_TIMEOUT, kernel_findings(&kernel, known));
    checked.await.unwrap_or_else(|_| {
        vec![Finding::warn(
            format!("the checks of jails did not end within {ADVICE_TIMEOUT:?}"),
            "find out which of sysctl(8), jls(8) and mount(8) hangs, and why",
        )]
    })
}

async fn kernel_findings(kernel: &str, known: &[KnownConfinement]) -> Vec<Finding> {
    // Without the program or the kernel's file, the advice is to update instead of to reboot.
    let installed = output(FREEBSD_VERSION, &["-k"]).await.ok();
    let mut findings = advisories::findings(kernel, installed.as_deref().map(str::trim));
    findings.extend(restrictions(&persistent_jails(known)).await);
    match shared_directories(known, DescriptorFix::of_kernel(kernel)).await {
        Ok(shared) => findings.extend(shared),
        Err(problem) => findings.push(unreadable("directories that jails share", &problem)),
    }
    let owners = |is_jailed: bool| -> Vec<String> {
        let agents = known.iter().filter(|known| known.is_agent());
        agents
            .filter(|known| known.jail.is_some() == is_jailed)
            .map(|known| known.owner.to_string())
            .collect()
    };
    findings.extend(sharing::unjailed(&owners(false), &owners(true)));
    findings
}

/// Returns the persistent jails and those who name them.
fn persistent_jails(known: &[KnownConfinement]) -> BTreeMap<String, String> {
    jail_users(known, |known| known.jail.as_ref()?.name.clone())
}

/// Returns all jails of Colibri: persistent ones, and that of each running agent.
fn all_jails(known: &[KnownConfinement]) -> BTreeMap<String, String> {
    jail_users(known, |known| {
        let jail = known.jail.as_ref()?;
        match (&jail.name, &known.owner) {
            (Some(name), _) => Some(name.clone()),
            (None, ConfinementOwner::Agent(id)) => Some(format!("colibri-{id}")),
            (None, ConfinementOwner::Profile(_) | ConfinementOwner::Autostart(_)) => None,
        }
    })
}

/// Returns jails by name, each with a list of those who use it.
fn jail_users(
    known: &[KnownConfinement],
    name: impl Fn(&KnownConfinement) -> Option<String>,
) -> BTreeMap<String, String> {
    let mut users: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for known in known {
        // An invalid name is an error of the spawn; it must not become an option of jls(8).
        let Some(name) = name(known).filter(|name| name.parse::<JailName>().is_ok()) else {
            continue;
        };
        let owners = users.entry(name).or_default();
        owners.push(known.owner.to_string());
    }
    let listed = |(name, owners): (String, Vec<String>)| (name, owner_list(&owners));
    users.into_iter().map(listed).collect()
}

/// Returns a list for a message: names the first [`MAX_NAMED_OWNERS`], and counts the others.
fn owner_list(owners: &[String]) -> String {
    let (named, others) = owners.split_at(owners.len().min(MAX_NAMED_OWNERS));
    let named = named.join(", ");
    match others.len() {
        0 => named,
        1 => format!("{named} and 1 other"),
        count => format!("{named} and {count} others"),
    }
}

/// Returns a finding for each persistent jail.
async fn restrictions(jails: &BTreeMap<String, String>) -> Vec<Finding> {
    if jails.is_empty() {
        return Vec::new();
    }
    let parameters = match output(SYSCTL, &["-N", "security.jail.param"]).await {
        Ok(names) => restrictions::parameters(&names),
        Err(problem) => return vec![unreadable("restrictions of jails", &problem)],
    };
    let mut findings = Vec::new();
    for (jail, users) in jails.iter().take(MAX_JAILS) {
        let mut args = vec!["--libxo", "json", "-n", "-j", jail.as_str()];
        args.extend(parameters.iter().map(String::as_str));
        findings.push(match output(JLS, &args).await {
            Ok(text) => match parse::<ParameterList>(JLS, &text).map(ParameterList::into_first) {
                Ok(values) => restrictions::finding(jail, users, &values),
                Err(problem) => unreadable(&format!("restrictions of jail {jail}"), &problem),
            },
            // jls(8) reports both as exit code 1.
            Err(problem) if problem.contains("not found") => restrictions::missing(jail, users),
            Err(problem) => {
                findings.push(unreadable(
                    &format!("restrictions of jail {jail}"),
                    &problem,
                ));
                // The others would exceed their time too.
                break;
            }
        });
    }
    if jails.len() > MAX_JAILS {
        findings.push(Finding::warn(
            format!(
                "the restrictions of {} other jails were not checked",
                jails.len() - MAX_JAILS
            ),
            "compare them with jail(8), e.g. with jls -n -j NAME",
        ));
    }
    findings
}

/// The output of jls(8) with `--libxo json -n` and any parameters.
#[derive(Debug, serde::Deserialize)]
struct ParameterList {
    #[serde(rename = "jail-information")]
    information: ParameterInformation,
}

#[derive(Debug, serde::Deserialize)]
struct ParameterInformation {
    jail: Vec<Map<String, Value>>,
}

impl ParameterList {
    fn into_first(self) -> Map<String, Value> {
        let mut jails = self.information.jail.into_iter();
        jails.next().unwrap_or_default()
    }
}

async fn shared_directories(
    known: &[KnownConfinement],
    fix: DescriptorFix,
) -> Result<Vec<Finding>, String> {
    let users = all_jails(known);
    if users.len() < 2 {
        return Ok(Vec::new());
    }
    let jails = output(JLS, &["--libxo", "json", "-n", "name", "path"]).await?;
    let mounts = output(MOUNT, &["--libxo", "json", "-p", "-t", "nullfs"]).await?;
    Ok(sharing::findings(
        &users,
        &parse::<JailList>(JLS, &jails)?.into_jails(),
        &parse::<MountList>(MOUNT, &mounts)?.into_mounts(),
        fix,
    ))
}

/// Returns the finding for something that a program should have printed.
fn unreadable(what: &str, problem: &str) -> Finding {
    Finding::warn(
        format!("cannot read {what}: {problem}"),
        "check them yourself: jls -n -j NAME, mount -p -t nullfs",
    )
}

/// Returns the standard output of a program, or why there is none.
async fn output(program: &str, args: &[&str]) -> Result<String, String> {
    match probe::run(Path::new(program), args, PROGRAM_TIMEOUT).await {
        Ok(output) if output.is_success() => Ok(output.stdout),
        Ok(output) => Err(format!("{program} failed: {}", output.failure())),
        Err(error) => Err(format!("{program} cannot be started: {error}")),
    }
}

/// Parses the output of a program. A list that is longer than what [`probe::run`] keeps is an error.
fn parse<T: DeserializeOwned>(program: &str, text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| match error.is_eof() {
        true => format!(
            "{program} printed more than the {} bytes that are read",
            text.len()
        ),
        false => format!("{program} printed an unknown format: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use colibri_jail_core::JailConfig;
    use colibri_priv::FindingStatus;

    fn known(owner: ConfinementOwner, name: Option<&str>, path: Option<&str>) -> KnownConfinement {
        let jail = JailConfig {
            name: name.map(str::to_owned),
            path: path.map(str::to_owned),
            ..JailConfig::default()
        };
        KnownConfinement::new(owner, Some(&jail))
    }

    #[test]
    fn jails_are_listed_with_their_users() {
        let agent = |id: &str| ConfinementOwner::Agent(id.to_owned());
        let profile = |name: &str| ConfinementOwner::Profile(name.to_owned());
        let autostart = |key: &str| ConfinementOwner::Autostart(key.to_owned());
        let all = [
            known(agent("a1"), Some("build"), None),
            known(agent("a2"), None, Some("/j")),
            known(agent("a3"), None, None),
            known(profile("p"), Some("build"), None),
            known(profile("q"), None, Some("/j")),
            known(profile("r"), Some("-v"), None),
            known(autostart("night-shift"), Some("build"), None),
            known(autostart("day-shift"), None, Some("/j")),
        ];
        let users = "agent a1, profile p, autostart entry night-shift";
        let build = ("build".to_owned(), users.to_owned());
        assert_eq!(persistent_jails(&all), BTreeMap::from([build.clone()]));
        let ephemeral = ("colibri-a2".to_owned(), "agent a2".to_owned());
        assert_eq!(all_jails(&all), BTreeMap::from([build, ephemeral]));
        assert!(all[2].jail.is_none(), "limits alone request no jail");
    }

    #[test]
    fn users_of_a_jail_are_bounded() {
        let agents: Vec<_> = (1..=20)
            .map(|number| {
                let owner = ConfinementOwner::Agent(format!("a{number}"));
                known(owner, Some("build"), None)
            })
            .collect();
        let eight =
            "agent a1, agent a2, agent a3, agent a4, agent a5, agent a6, agent a7, agent a8";
        for (count, end) in [(8, ""), (9, " and 1 other"), (20, " and 12 others")] {
            let expected = ("build".to_owned(), format!("{eight}{end}"));
            assert_eq!(
                persistent_jails(&agents[..count]),
                BTreeMap::from([expected])
            );
        }
    }

    #[test]
    fn truncated_output_of_jls_is_an_error() {
        let text = r#"{"__version": "2", "jail-information": {"jail": [{"allow.mount":true,"children.max":"3"}]}}"#;
        let values = parse::<ParameterList>(JLS, text).unwrap().into_first();
        assert_eq!(values.len(), 2);
        let error = parse::<ParameterList>(JLS, &text[..60]).unwrap_err();
        assert_eq!(
            error,
            "/usr/sbin/jls printed more than the 60 bytes that are read"
        );
        let error = parse::<ParameterList>(JLS, "allow.mount").unwrap_err();
        assert!(
            error.starts_with("/usr/sbin/jls printed an unknown format: "),
            "{error}"
        );
        assert_eq!(unreadable("mounts", &error).status, FindingStatus::Warn);
    }

    /// Only a FreeBSD kernel has these jails and advisories.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn other_systems_have_no_findings() {
        let owner = ConfinementOwner::Agent("a".to_owned());
        assert_eq!(findings(&[known(owner, Some("build"), None)]).await, []);
        assert_eq!(sharing_warnings(&Confinement::None, &[]), [""; 0]);
    }
}
