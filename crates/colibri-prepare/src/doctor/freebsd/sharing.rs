//! Directories that two jails share. Through a socket in one of them, a process can pass a directory descriptor to a
//! process of the other jail, which can leave its root directory with it (FreeBSD-SA-26:04.jail, FreeBSD-SA-26:66.jail).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use colibri_jail_core::{Confinement, EphemeralJail, JailName};
use colibri_priv::Finding;
use colibri_types::AgentSpec;
use serde::Deserialize;

use super::advisories::DescriptorFix;
use super::owner_list;

/// Maximum number of nested nullfs mounts that are followed.
const MAX_NESTED_MOUNTS: usize = 8;
/// Maximum number of pairs of jails that are reported.
const MAX_PAIRS: usize = 8;

/// The output of `jls --libxo json -n name path`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct JailList {
    #[serde(rename = "jail-information")]
    information: JailInformation,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct JailInformation {
    jail: Vec<ListedJail>,
}

/// A jail and its root directory.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct ListedJail {
    name: String,
    path: PathBuf,
}

impl JailList {
    pub(super) fn into_jails(self) -> Vec<ListedJail> {
        self.information.jail
    }
}

/// The output of `mount --libxo json -p -t nullfs`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct MountList {
    mount: MountTable,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct MountTable {
    fstab: Vec<MountEntry>,
}

/// A mount as mount(8) prints it with `-p`.
#[derive(Debug, Clone, Deserialize)]
struct MountEntry {
    device: PathBuf,
    mntpoint: PathBuf,
    opts: String,
}

/// A nullfs mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NullfsMount {
    source: PathBuf,
    target: PathBuf,
    is_writable: bool,
}

impl MountList {
    pub(super) fn into_mounts(self) -> Vec<NullfsMount> {
        let mount = |entry: MountEntry| NullfsMount {
            is_writable: !entry.opts.split(',').any(|option| option == "ro"),
            source: entry.device,
            target: entry.mntpoint,
        };
        self.mount.fstab.into_iter().map(mount).collect()
    }
}

/// A directory of the host with everything below it, as a jail sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tree {
    path: PathBuf,
    is_writable: bool,
}

impl Tree {
    /// Returns the directory that both show, if one of them can write it. The other one can then connect to a socket there,
    /// also on a read-only mount (`null_access` in sys/fs/nullfs/null_vnops.c).
    fn common<'a>(&'a self, other: &'a Self) -> Option<&'a Path> {
        let inner = if self.path.starts_with(&other.path) {
            &self.path
        } else if other.path.starts_with(&self.path) {
            &other.path
        } else {
            return None;
        };
        (self.is_writable || other.is_writable).then_some(inner)
    }
}

/// Returns the directories of the host that a jail shows: its root and the nullfs mounts below it.
fn visible(root: &Path, mounts: &[NullfsMount]) -> Vec<Tree> {
    let below = mounts
        .iter()
        .filter(|mount| mount.target.starts_with(root) && mount.target != root);
    let below = below.map(|mount| resolve(&mount.source, mount.is_writable, mounts));
    std::iter::once(resolve(root, true, mounts))
        .chain(below)
        .collect()
}

/// Follows nullfs mounts to the directory that a path shows.
fn resolve(path: &Path, is_writable: bool, mounts: &[NullfsMount]) -> Tree {
    let mut tree = Tree {
        path: path.to_owned(),
        is_writable,
    };
    for _ in 0..MAX_NESTED_MOUNTS {
        let covers = |mount: &&NullfsMount| tree.path.starts_with(&mount.target);
        let depth = |mount: &&NullfsMount| mount.target.components().count();
        // Of two mounts on the same directory, the later one covers the other.
        let Some(mount) = mounts.iter().filter(covers).max_by_key(depth) else {
            break;
        };
        let Ok(rest) = tree.path.strip_prefix(&mount.target) else {
            break;
        };
        let path = match rest.as_os_str().is_empty() {
            true => mount.source.clone(),
            false => mount.source.join(rest),
        };
        if path == tree.path {
            break;
        }
        tree = Tree {
            path,
            is_writable: tree.is_writable && mount.is_writable,
        };
    }
    tree
}

/// Returns a finding for each pair of jails that share a directory. `users` are the agents and profiles of each jail; other
/// jails of the host are not Colibri's.
pub(super) fn findings(
    users: &BTreeMap<String, String>,
    jails: &[ListedJail],
    mounts: &[NullfsMount],
    fix: DescriptorFix,
) -> Vec<Finding> {
    let used: Vec<_> = jails
        .iter()
        .filter_map(|jail| {
            let user = users.get(&jail.name)?;
            Some((jail, user, visible(&jail.path, mounts)))
        })
        .collect();
    let mut pairs = Vec::new();
    for (number, (one, one_user, one_trees)) in used.iter().enumerate() {
        for (other, other_user, other_trees) in used.iter().skip(number + 1) {
            // Jails with equal roots see the same files: a descriptor leads nowhere else.
            if one.path == other.path {
                continue;
            }
            let common = one_trees
                .iter()
                .find_map(|tree| other_trees.iter().find_map(|other| tree.common(other)));
            if let Some(common) = common {
                pairs.push(format!(
                    "jail {} of {one_user} and jail {} of {other_user} share {}, which one of them can write",
                    one.name,
                    other.name,
                    common.display()
                ));
            }
        }
    }
    let omitted = pairs.len().saturating_sub(MAX_PAIRS);
    let mut findings: Vec<Finding> = pairs
        .into_iter()
        .take(MAX_PAIRS)
        .map(|pair| pair_finding(&pair, fix))
        .collect();
    if omitted > 0 {
        findings.push(pair_finding(
            &format!("{omitted} other pairs of jails share a directory"),
            fix,
        ));
    }
    findings
}

fn pair_finding(pair: &str, fix: DescriptorFix) -> Finding {
    let separate =
        "give each agent its own directory, or run the agents that share one in the same jail";
    match fix {
        DescriptorFix::Present => Finding::ok(format!(
            "{pair}; the kernel restricts directory descriptors that they pass"
        )),
        DescriptorFix::Missing(advisory) => Finding::warn(
            format!(
                "{pair}: an agent can leave its jail with a directory descriptor that another passes ({advisory} is not fixed)"
            ),
            format!("update FreeBSD and reboot, or {separate}"),
        ),
        DescriptorFix::Unknown => Finding::warn(
            format!(
                "{pair}: an agent can leave its jail with a directory descriptor that another passes, unless the kernel has the fixes of FreeBSD-SA-26:04.jail and FreeBSD-SA-26:66.jail"
            ),
            separate,
        ),
    }
}

/// Returns the finding for agents without a jail beside jailed ones; `None` if there are not both.
pub(super) fn unjailed(unjailed: &[String], jailed: &[String]) -> Option<Finding> {
    if unjailed.is_empty() || jailed.is_empty() {
        return None;
    }
    Some(Finding::warn(
        format!(
            "{} without a jail and {} in jails run at the same time: a process outside can pass descriptors of the host's files into a jail, with any kernel (FreeBSD-SA-26:04.jail, Impact)",
            owner_list(unjailed),
            owner_list(jailed)
        ),
        "run every agent in a jail, or agents without one under another user's daemon",
    ))
}

/// Returns a warning for each running agent with which a new one would share a directory, if the kernel does not restrict
/// the directory descriptors that both can pass.
pub(crate) fn warnings(
    confinement: &Confinement,
    running: &[AgentSpec],
    fix: DescriptorFix,
) -> Vec<String> {
    let (Confinement::Ephemeral(jail), DescriptorFix::Missing(advisory)) = (confinement, fix)
    else {
        return Vec::new();
    };
    let Ok(name) = "colibri".parse::<JailName>() else {
        return Vec::new();
    };
    let shared = |spec: &AgentSpec| {
        let other = spec.config.jail.as_ref()?.confinement(&name).ok()?;
        let Confinement::Ephemeral(other) = other else {
            return None;
        };
        let source = shared_source(jail, &other)?;
        Some(format!(
            "agent {} has {source} too: one of the agents can leave its jail with a directory descriptor that the other passes, because this kernel lacks the fix of {advisory}",
            spec.id
        ))
    };
    running.iter().filter_map(shared).collect()
}

/// Returns the first directory that both mount and one can write, unless both have the same root.
fn shared_source<'a>(one: &'a EphemeralJail, other: &EphemeralJail) -> Option<&'a str> {
    if one.path == other.path {
        return None;
    }
    let is_shared = |source: &str, read_only: bool| {
        let same = |mount: &&colibri_jail_core::Mount| mount.source.as_str() == source;
        let mut same = other.mounts.iter().filter(same);
        same.any(|mount| !read_only || !mount.read_only)
    };
    let mut mounts = one.mounts.iter();
    mounts
        .find(|mount| is_shared(mount.source.as_str(), mount.read_only))
        .map(|mount| mount.source.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use colibri_jail_core::JailConfig;
    use colibri_priv::FindingStatus;

    const MISSING: DescriptorFix = DescriptorFix::Missing("FreeBSD-SA-26:66.jail");

    /// As FreeBSD 15.1 prints it.
    const JAILS: &str = r#"{"__version": "2", "jail-information": {"jail": [{"name":"pa","path":"/j/a"}, {"name":"pb","path":"/j/b"}, {"name":"other","path":"/j/other"}]}}"#;
    const MOUNTS: &str = r#"{"mount": {"fstab": [{"device":"/sh","mntpoint":"/j/a/w","fstype":"nullfs","opts":"rw","dump":0,"pass":0}, {"device":"/sh","mntpoint":"/j/b/w","fstype":"nullfs","opts":"ro","dump":0,"pass":0}, {"device":"/s p","mntpoint":"/j/a/sp ace","fstype":"nullfs","opts":"rw,nosuid","dump":0,"pass":0}]}}"#;

    fn jails(list: &[(&str, &str)]) -> Vec<ListedJail> {
        let jail = |(name, path): &(&str, &str)| ListedJail {
            name: (*name).to_owned(),
            path: path.into(),
        };
        list.iter().map(jail).collect()
    }

    fn mounts(list: &[&str]) -> Vec<NullfsMount> {
        let mount = |text: &&str| {
            let words: Vec<&str> = text.split(' ').collect();
            NullfsMount {
                source: words[0].into(),
                target: words[1].into(),
                is_writable: words[2] == "rw",
            }
        };
        list.iter().map(mount).collect()
    }

    #[test]
    fn output_of_jls_and_mount_is_parsed() {
        let list: JailList = serde_json::from_str(JAILS).unwrap();
        let expected = [("pa", "/j/a"), ("pb", "/j/b"), ("other", "/j/other")];
        assert_eq!(list.into_jails(), jails(&expected));
        let list: MountList = serde_json::from_str(MOUNTS).unwrap();
        let parsed = list.into_mounts();
        assert_eq!(parsed[..2], mounts(&["/sh /j/a/w rw", "/sh /j/b/w ro"]));
        assert_eq!(parsed[2].source, Path::new("/s p"));
        assert!(parsed[2].is_writable);
        let none: MountList = serde_json::from_str(r#"{"mount": {}}"#).unwrap();
        assert_eq!(none.into_mounts(), []);
    }

    /// The jails a, b and c are Colibri's; d is another one.
    #[test]
    fn writable_directory_of_two_jails_is_found() {
        let users = ["a", "b", "c"].map(|name| (name.to_owned(), format!("agent {name}1")));
        let users = BTreeMap::from(users);
        let shared = |jail_list: &[(&str, &str)], mount_list: &[&str]| {
            let found = findings(&users, &jails(jail_list), &mounts(mount_list), MISSING);
            let directory = |finding: Finding| {
                assert_eq!(finding.status, FindingStatus::Warn);
                let words = finding.what.split(" share ").nth(1).unwrap().to_owned();
                words.split(',').next().unwrap().to_owned()
            };
            found.into_iter().map(directory).collect::<Vec<_>>()
        };
        let two = [("a", "/j/a"), ("b", "/j/b")];
        let both = |one: &str, other: &str| {
            shared(
                &two,
                &[&format!("{one} /j/a/w rw"), &format!("{other} /j/b/w ro")],
            )
        };
        assert_eq!(both("/sh", "/sh"), ["/sh"]);
        assert_eq!(both("/sh", "/sh/x"), ["/sh/x"]);
        assert_eq!(both("/sh/x", "/sh"), ["/sh/x"]);
        assert_eq!(both("/sh", "/shy"), [""; 0]);
        assert_eq!(
            shared(&two, &["/sh /j/a/w ro", "/sh /j/b/w ro"]),
            [""; 0],
            "no socket can be created on a read-only mount"
        );
        assert_eq!(
            shared(&two, &["/j/b/tmp /j/a/w ro"]),
            ["/j/b/tmp"],
            "the root of b"
        );
        let nested = [("a", "/j"), ("b", "/j/b")];
        assert_eq!(shared(&nested, &[]), ["/j/b"]);
        let same_root = [("a", "/j/a"), ("b", "/j/a")];
        assert_eq!(shared(&same_root, &["/sh /j/a/w rw"]), [""; 0]);
        let with_other = [("a", "/j/a"), ("d", "/j/d")];
        assert_eq!(
            shared(&with_other, &["/sh /j/a/w rw", "/sh /j/d/w rw"]),
            [""; 0]
        );
        // A read-only template as the root of both, with private directories on it.
        let template = ["/t /j/a ro", "/t /j/b ro"];
        assert_eq!(shared(&two, &template), [""; 0]);
        let private = [&template[..], &["/h/a /j/a/tmp rw", "/h/b /j/b/tmp rw"]].concat();
        assert_eq!(shared(&two, &private), [""; 0]);
        assert_eq!(shared(&two, &["/t /j/a rw", "/t /j/b ro"]), ["/t"]);
        // A mount of a mount.
        assert_eq!(
            shared(&two, &["/sh /m rw", "/m/x /j/a/w rw", "/sh/x /j/b/w ro"]),
            ["/sh/x"]
        );
        assert_eq!(
            shared(&two, &["/sh /m ro", "/m /j/a/w rw", "/sh /j/b/w ro"]),
            [""; 0],
            "the mount below is read-only"
        );
        let three = [("a", "/j/a"), ("b", "/j/b"), ("c", "/j/c")];
        let all = ["/sh /j/a/w rw", "/sh /j/b/w rw", "/sh /j/c/w rw"];
        assert_eq!(shared(&three, &all).len(), 3);
        // A cycle ends.
        assert_eq!(shared(&two, &["/j/a/w /j/b rw", "/j/b /j/a/w rw"]).len(), 1);
    }

    #[test]
    fn pairs_are_bounded_and_the_kernel_decides() {
        let names: Vec<String> = (0..6).map(|number| format!("j{number}")).collect();
        let users = names
            .iter()
            .map(|name| (name.clone(), format!("agent {name}")));
        let users: BTreeMap<_, _> = users.collect();
        let roots: Vec<_> = names
            .iter()
            .map(|name| (name.as_str(), format!("/j/{name}")))
            .collect();
        let roots: Vec<_> = roots
            .iter()
            .map(|(name, path)| (*name, path.as_str()))
            .collect();
        let targets: Vec<_> = roots
            .iter()
            .map(|(_, path)| format!("/sh {path}/w rw"))
            .collect();
        let targets: Vec<_> = targets.iter().map(String::as_str).collect();
        let found = findings(&users, &jails(&roots), &mounts(&targets), MISSING);
        assert_eq!(found.len(), MAX_PAIRS + 1);
        assert!(found[MAX_PAIRS].what.starts_with("7 other pairs of jails"));
        let pair = |fix| findings(&users, &jails(&roots[..2]), &mounts(&targets), fix).remove(0);
        let shown: Vec<_> = [MISSING, DescriptorFix::Unknown, DescriptorFix::Present]
            .map(pair)
            .into_iter()
            .map(|finding| {
                let fix = finding.fix.as_deref().unwrap_or("-");
                format!("{:?}: {}\n  -> {fix}", finding.status, finding.what)
            })
            .collect();
        insta::assert_snapshot!(shown.join("\n"));
    }

    #[test]
    fn unjailed_agents_are_found_beside_jailed_ones() {
        let names = |names: &[&str]| {
            names
                .iter()
                .map(|name| format!("agent {name}"))
                .collect::<Vec<_>>()
        };
        let finding = unjailed(&names(&["a"]), &names(&["b", "c"])).unwrap();
        assert_eq!(finding.status, FindingStatus::Warn);
        assert!(
            finding
                .what
                .starts_with("agent a without a jail and agent b, agent c in jails")
        );
        let many = vec!["agent a".to_owned(); 1000];
        let what = unjailed(&many, &many).unwrap().what;
        assert!(
            what.starts_with("agent a, agent a, ") && what.len() < 500,
            "{what}"
        );
        assert!(
            what.contains(" and 992 others without a jail and "),
            "{what}"
        );
        assert_eq!(unjailed(&[], &names(&["b"])), None);
        assert_eq!(unjailed(&names(&["a"]), &[]), None);
    }

    #[test]
    fn new_agent_with_the_directory_of_another_is_warned() {
        let config = |root: &str, mounts: &[&str]| JailConfig {
            path: Some(root.to_owned()),
            mounts: mounts.iter().map(|mount| mount.parse().unwrap()).collect(),
            ..JailConfig::default()
        };
        let spec = |jail: Option<JailConfig>| -> AgentSpec {
            serde_json::from_value(serde_json::json!({
                "id": "abc", "program": "x", "engine": "", "privilege": "", "created_at_ns": 0, "jail": jail,
            }))
            .unwrap()
        };
        let warned = |new: JailConfig, other: Option<JailConfig>, fix| {
            let confinement = new.confinement(&"colibri-x".parse().unwrap()).unwrap();
            warnings(&confinement, &[spec(other)], fix)
        };
        let other = |mounts: &[&str]| Some(config("/j/b", mounts));
        let new = || config("/j/a", &["/own", "/sh:/w"]);
        assert_eq!(
            warned(new(), other(&["/sh:/v:ro"]), MISSING),
            [
                "agent abc has /sh too: one of the agents can leave its jail with a directory descriptor that the other passes, because this kernel lacks the fix of FreeBSD-SA-26:66.jail"
            ]
        );
        let read_only = config("/j/a", &["/sh:/w:ro"]);
        assert_eq!(
            warned(read_only.clone(), other(&["/sh:/v"]), MISSING).len(),
            1
        );
        assert_eq!(warned(read_only, other(&["/sh:/v:ro"]), MISSING), [""; 0]);
        assert_eq!(
            warned(new(), Some(config("/j/a", &["/sh:/v"])), MISSING),
            [""; 0]
        );
        assert_eq!(warned(new(), other(&["/else"]), MISSING), [""; 0]);
        assert_eq!(warned(new(), None, MISSING), [""; 0]);
        for fix in [DescriptorFix::Present, DescriptorFix::Unknown] {
            assert_eq!(warned(new(), other(&["/sh"]), fix), [""; 0]);
        }
    }
}
