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

/// Returns all findings. `known` are the confinements of running agents and of profiles.
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
            (None, ConfinementOwner::Profile(_)) => None,
        }
    })
}

/// Returns jails by name, each with a list of those who use it.
fn jail_users(
    known: &[KnownConfinement],
    name: impl Fn(&KnownConfinement) -> Option<String>,
) -> BTreeMap<String, String> {
    let mut users: BTreeMap<String, String> = BTreeMap::new();
    for known in known {
        // An invalid name is an error of the spawn; it must not become an option of jls(8).
        let Some(name) = name(known).filter(|name| name.parse::<JailName>().is_ok()) else {
            continue;
        };
        let owner = known.owner.to_string();
        users
            .entry(name)
            .and_modify(|users| {
                users.push_str(", ");
                users.push_str(&owner);
            })
            .or_insert(owner);
    }
    users
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

fn unreadable(what: &str, problem: &str) -> Finding {
    Finding::warn(
        format!("cannot read {what}: {problem}"),
        "run that program as the daemon's user, and compare its output with docs/freebsd.md",
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

/// Parses the output of a program. A list that is longer than the output that is kept is an error.
fn parse<T: DeserializeOwned>(program: &str, text: &str) -> Result<T, String> {
    // jls(8) and mount(8) print nothing for an empty list in some releases.
    let text = match text.trim() {
        "" => "{}",
        text => text,
    };
    serde_json::from_str(text).map_err(|error| {
        format!(
            "the output of {program} ({} bytes) is not the expected list: {error}",
            text.len()
        )
    })
}
