//! FreeBSD security advisories about jails, compared with the release of the kernel.
//!
//! The table has the advisories since 2026 whose text says that a jailed process reaches something outside its jail. Releases
//! and patch levels are those of the field `Corrected`. Sources: `https://security.freebsd.org/advisories/`.

use std::fmt;

use colibri_priv::Finding;

/// Day of the last advisory in the table.
const KNOWN_UNTIL: &str = "2026-09-29";
/// How to install the fixes (freebsd-update(8), pkg(8)).
const UPDATE: &str = "as root: freebsd-update fetch install, or with base packages pkg upgrade -r FreeBSD-base; then reboot";
/// How to leave a release without fixes.
const UPGRADE: &str =
    "upgrade to a supported release, see https://www.freebsd.org/security/ and freebsd-update(8)";

/// A release and its patch level, such as 15.1-RELEASE-p4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Release {
    version: Version,
    patch: u32,
}

/// The version of a release, such as 15.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    major: u32,
    minor: u32,
}

impl Release {
    const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self {
            version: Version { major, minor },
            patch,
        }
    }

    /// Parses the output of `uname -r` or freebsd-version(1). Returns `None` for a kernel without a patch level, such as
    /// STABLE, CURRENT or a release candidate.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (version, suffix) = text.split_once('-')?;
        let (major, minor) = version.split_once('.')?;
        let patch = match suffix.strip_prefix("RELEASE")? {
            "" => 0,
            patch => number(patch.strip_prefix("-p")?)?,
        };
        Some(Self::new(number(major)?, number(minor)?, patch))
    }
}

/// Parses a number of digits only: `str::parse` also accepts a sign.
fn number(digits: &str) -> Option<u32> {
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().ok()).flatten()
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-RELEASE", self.version)?;
        match self.patch {
            0 => Ok(()),
            patch => write!(f, "-p{patch}"),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Which agents can use a flaw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// Every jailed agent.
    EveryJail,
    /// Agents in a jail with some configuration.
    SomeJails,
    /// Agents that exchange directory descriptors with a process outside their jail.
    SharedDirectory,
}

/// A security advisory.
#[derive(Debug)]
struct Advisory {
    id: &'static str,
    /// What a jailed process can do.
    problem: &'static str,
    reach: Reach,
    /// The first patch level with the fix, for each affected release.
    fixed: &'static [Release],
}

/// The advisories, in the order of their numbers. The last ones concern all releases that were supported then.
const ADVISORIES: &[Advisory] = &[
    Advisory {
        id: "FreeBSD-SA-26:02.jail",
        problem: "root in a jail with allow.mount.nullfs can leave its root directory",
        reach: Reach::SomeJails,
        fixed: &[Release::new(14, 3, 8), Release::new(13, 5, 9)],
    },
    Advisory {
        id: "FreeBSD-SA-26:04.jail",
        problem: "processes of two jails with a common nullfs directory can exchange directory descriptors and leave their root directories",
        reach: Reach::SharedDirectory,
        fixed: &[Release::new(14, 3, 9), Release::new(13, 5, 10)],
    },
    Advisory {
        id: "FreeBSD-SA-26:25.thr",
        problem: "a jailed process can signal every process of the host",
        reach: Reach::EveryJail,
        fixed: &[
            Release::new(15, 0, 10),
            Release::new(14, 4, 6),
            Release::new(14, 3, 15),
        ],
    },
    Advisory {
        id: "FreeBSD-SA-26:38.jail",
        problem: "a jailed process can free a jail's kernel structure by a reference count underflow, and may gain privileges",
        reach: Reach::EveryJail,
        fixed: &[Release::new(15, 1, 1), Release::new(15, 0, 11)],
    },
    Advisory {
        id: "FreeBSD-SA-26:66.jail",
        problem: "a jailed process that gets a directory descriptor from another jail can leave its root directory",
        reach: Reach::SharedDirectory,
        fixed: SUPPORTED,
    },
    Advisory {
        id: "FreeBSD-SA-26:69.udp",
        problem: "processes of a jail with an IPv6 address and without vnet can send UDP to the host's loopback address",
        reach: Reach::SomeJails,
        fixed: SUPPORTED,
    },
];

/// The releases that were supported when the last advisories were published, and their fixed patch levels.
const SUPPORTED: &[Release] = &[
    Release::new(15, 1, 4),
    Release::new(15, 0, 14),
    Release::new(14, 5, 1),
    Release::new(14, 4, 10),
];

impl Advisory {
    /// Returns the first fixed release, if this kernel is affected.
    fn missing_in(&self, kernel: Release) -> Option<Release> {
        let mut fixed = self.fixed.iter().copied();
        fixed.find(|fixed| fixed.version == kernel.version && kernel.patch < fixed.patch)
    }

    fn finding(&self, kernel: Release, fixed: Release, fix: String) -> Finding {
        let what = format!(
            "kernel {kernel} lacks the fix of {}: {}; fixed in {fixed}",
            self.id, self.problem
        );
        match self.reach {
            Reach::EveryJail => Finding::fail(what, fix),
            Reach::SomeJails | Reach::SharedDirectory => Finding::warn(what, fix),
        }
    }
}

/// Whether a kernel restricts the directory descriptors that processes of two jails exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DescriptorFix {
    /// The kernel has the fixes.
    Present,
    /// The fix of an advisory is missing.
    Missing(&'static str),
    /// The kernel has no patch level, or its release is not in the table.
    Unknown,
}

impl DescriptorFix {
    /// Returns the state of a kernel, from the output of `uname -r`.
    pub(crate) fn of_kernel(release: &str) -> Self {
        let Some(kernel) = Release::parse(release) else {
            return Self::Unknown;
        };
        let is_shared = |advisory: &&Advisory| advisory.reach == Reach::SharedDirectory;
        let mut shared = ADVISORIES.iter().filter(is_shared);
        match shared.find(|advisory| advisory.missing_in(kernel).is_some()) {
            Some(advisory) => Self::Missing(advisory.id),
            None if support(kernel.version) == Support::Listed => Self::Present,
            None => Self::Unknown,
        }
    }
}

/// The place of a release relative to the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Support {
    /// The table contains it.
    Listed,
    /// It was published after the last advisory of the table.
    Newer,
    /// It was not supported when the last advisory was published.
    Ended,
}

fn support(version: Version) -> Support {
    let listed = || SUPPORTED.iter().map(|release| release.version);
    if listed().any(|supported| supported == version) {
        return Support::Listed;
    }
    let same_major = listed().filter(|supported| supported.major == version.major);
    match same_major.max().or_else(|| listed().max()) {
        Some(newest) if version < newest => Support::Ended,
        _ => Support::Newer,
    }
}

/// Returns the findings for a kernel, from the output of `uname -r`. `installed` is the output of `freebsd-version -k`, if
/// it is known: the kernel that the next boot starts.
pub(super) fn findings(running: &str, installed: Option<&str>) -> Vec<Finding> {
    let Some(kernel) = Release::parse(running) else {
        return vec![Finding::ok(format!(
            "kernel {running} has no patch level to compare with security advisories"
        ))];
    };
    let installed = installed.and_then(Release::parse);
    let mut findings: Vec<Finding> = ADVISORIES
        .iter()
        .filter_map(|advisory| Some((advisory, advisory.missing_in(kernel)?)))
        .map(|(advisory, fixed)| {
            let next = installed.filter(|next| {
                next.version == kernel.version && advisory.missing_in(*next).is_none()
            });
            let fix = match next {
                Some(next) => format!("reboot, which starts the installed kernel {next}"),
                None => UPDATE.to_owned(),
            };
            advisory.finding(kernel, fixed, fix)
        })
        .collect();
    match support(kernel.version) {
        Support::Ended => findings.push(Finding::warn(
            format!(
                "kernel {kernel}: the security advisories of {KNOWN_UNTIL}, which are for all supported releases, do not list FreeBSD {}",
                kernel.version
            ),
            UPGRADE,
        )),
        Support::Newer => findings.push(Finding::ok(format!(
            "kernel {kernel} is newer than the security advisories that this version of Colibri knows ({KNOWN_UNTIL})"
        ))),
        Support::Listed if findings.is_empty() => findings.push(Finding::ok(format!(
            "kernel {kernel} has the fixes of all security advisories about jails up to {KNOWN_UNTIL}"
        ))),
        Support::Listed => {}
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use colibri_priv::FindingStatus;

    #[test]
    fn release_without_patch_level_is_not_parsed() {
        for (text, release) in [
            ("15.1-RELEASE", Some(Release::new(15, 1, 0))),
            ("14.4-RELEASE-p10", Some(Release::new(14, 4, 10))),
            ("15.1-RC3-p1", None),
            ("15.1-STABLE", None),
            ("16.0-CURRENT", None),
            ("15.1-RELEASE-p4-CUSTOM", None),
            ("15.1-RELEASE-p", None),
            ("15.1-RELEASE-p+4", None),
            ("15.1-RELEASE-p99999999999", None),
            ("15-RELEASE", None),
            ("6.12.0-amd64", None),
            ("", None),
        ] {
            assert_eq!(Release::parse(text), release, "{text}");
            if let Some(release) = release {
                assert_eq!(release.to_string(), text);
            }
        }
    }

    #[test]
    fn kernel_gets_the_advisories_that_it_lacks() {
        use FindingStatus::{Fail, Ok, Warn};
        let table: &[(&str, &[(FindingStatus, &str)])] = &[
            (
                "15.1-RELEASE",
                &[
                    (Fail, "26:38.jail"),
                    (Warn, "26:66.jail"),
                    (Warn, "26:69.udp"),
                ],
            ),
            (
                "15.1-RELEASE-p1",
                &[(Warn, "26:66.jail"), (Warn, "26:69.udp")],
            ),
            (
                "15.1-RELEASE-p3",
                &[(Warn, "26:66.jail"), (Warn, "26:69.udp")],
            ),
            ("15.1-RELEASE-p4", &[(Ok, "has the fixes of all")]),
            ("15.1-RELEASE-p10", &[(Ok, "has the fixes of all")]),
            (
                "15.0-RELEASE-p9",
                &[
                    (Fail, "26:25.thr"),
                    (Fail, "26:38.jail"),
                    (Warn, "26:66.jail"),
                    (Warn, "26:69.udp"),
                ],
            ),
            ("15.0-RELEASE-p14", &[(Ok, "has the fixes of all")]),
            ("14.5-RELEASE", &[(Warn, "26:66.jail"), (Warn, "26:69.udp")]),
            (
                "14.4-RELEASE-p6",
                &[(Warn, "26:66.jail"), (Warn, "26:69.udp")],
            ),
            (
                "14.3-RELEASE",
                &[
                    (Warn, "26:02.jail"),
                    (Warn, "26:04.jail"),
                    (Fail, "26:25.thr"),
                    (Warn, "do not list FreeBSD 14.3"),
                ],
            ),
            (
                "14.3-RELEASE-p8",
                &[
                    (Warn, "26:04.jail"),
                    (Fail, "26:25.thr"),
                    (Warn, "do not list FreeBSD 14.3"),
                ],
            ),
            ("14.3-RELEASE-p15", &[(Warn, "do not list FreeBSD 14.3")]),
            (
                "13.5-RELEASE-p9",
                &[(Warn, "26:04.jail"), (Warn, "do not list FreeBSD 13.5")],
            ),
            ("14.2-RELEASE-p7", &[(Warn, "do not list FreeBSD 14.2")]),
            ("14.6-RELEASE", &[(Ok, "newer than")]),
            ("15.2-RELEASE-p1", &[(Ok, "newer than")]),
            ("16.0-RELEASE", &[(Ok, "newer than")]),
            ("15.1-STABLE", &[(Ok, "no patch level")]),
            ("16.0-CURRENT", &[(Ok, "no patch level")]),
        ];
        for (kernel, expected) in table {
            let found = findings(kernel, None);
            let shown: Vec<_> = found
                .iter()
                .map(|finding| (finding.status, &finding.what))
                .collect();
            assert_eq!(found.len(), expected.len(), "{kernel}: {shown:?}");
            for (finding, (status, text)) in found.iter().zip(*expected) {
                assert_eq!(finding.status, *status, "{kernel}: {shown:?}");
                assert!(finding.what.contains(text), "{kernel}: {shown:?}");
                assert!(finding.what.contains(kernel), "{kernel}: {shown:?}");
                assert_eq!(
                    finding.fix.is_none(),
                    *status == Ok,
                    "{kernel}: {finding:?}"
                );
            }
        }
    }

    #[test]
    fn installed_kernel_with_the_fix_needs_a_reboot() {
        let fixes = |installed| -> Vec<String> {
            let found = findings("15.1-RELEASE", installed);
            found
                .into_iter()
                .filter_map(|finding| finding.fix)
                .collect()
        };
        let reboot = |release| format!("reboot, which starts the installed kernel {release}");
        let p1 = reboot("15.1-RELEASE-p1");
        assert_eq!(
            fixes(Some("15.1-RELEASE-p1")),
            [p1.as_str(), UPDATE, UPDATE]
        );
        let p4 = reboot("15.1-RELEASE-p4");
        assert_eq!(fixes(Some("15.1-RELEASE-p4")), [p4.as_str(); 3]);
        for installed in [None, Some("15.1-RELEASE"), Some("16.0-CURRENT"), Some("")] {
            assert_eq!(fixes(installed), [UPDATE; 3], "{installed:?}");
        }
    }

    #[test]
    fn kernel_without_descriptor_fix_is_known() {
        for (kernel, expected) in [
            (
                "15.1-RELEASE-p3",
                DescriptorFix::Missing("FreeBSD-SA-26:66.jail"),
            ),
            (
                "14.3-RELEASE-p8",
                DescriptorFix::Missing("FreeBSD-SA-26:04.jail"),
            ),
            ("15.1-RELEASE-p4", DescriptorFix::Present),
            ("14.5-RELEASE-p1", DescriptorFix::Present),
            ("14.3-RELEASE-p9", DescriptorFix::Unknown),
            ("15.2-RELEASE", DescriptorFix::Unknown),
            ("15.1-STABLE", DescriptorFix::Unknown),
        ] {
            assert_eq!(DescriptorFix::of_kernel(kernel), expected, "{kernel}");
        }
    }
}
