//! The rules of mac_do(4), in both grammars: finds the rule that lets a user become root with its present groups, as
//! `mdo -i` requests. Pure, so that it is tested on every host.
//!
//! FreeBSD 15 writes `uid=1001>uid=0,gid=.,+gid=.` with `;` between rules, 14 `uid=1001:0` with `,` or `;`.

/// A user or group in a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Id {
    Number(u32),
    /// `.`: the present id of the process.
    Current,
    /// `*` or `any`.
    Any,
}

/// A target of a rule (mac_do(4)). A group without a flag is the primary one; the flags `+`, `!` and `-` allow, require
/// and forbid a supplementary group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Uid(Id),
    PrimaryGroup(Id),
    AllowedGroup(Id),
    RequiredGroup(Id),
    ForbiddenGroup(Id),
}

/// The processes to which a rule applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Uid(u32),
    Gid(u32),
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    text: String,
    source: Source,
    targets: Vec<Target>,
    /// Whether the rule allows any user and any groups.
    allows_all: bool,
}

/// A malformed rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a rule of mac_do(4)")]
pub(crate) struct BadRule(pub(crate) String);

/// The result of the rules for one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// This rule lets the user become root.
    Allowed(String),
    /// This rule would, except for the user's groups.
    WrongGroups(String),
    /// No rule lets the user become root.
    NoRule,
}

/// Parses `security.mac.do.rules`.
pub(crate) fn parse(text: &str) -> Result<Vec<Rule>, BadRule> {
    let mut rules = Vec::new();
    for part in text
        .split(';')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        if let Some((from, to)) = part.split_once('>') {
            rules.push(parse_rule(part, from, to)?);
            continue;
        }
        // FreeBSD 14 separates rules by commas too, and 15 also accepts ':' for '>'. An item without ':' is a further
        // target of the rule before it.
        let mut texts: Vec<String> = Vec::new();
        for item in part.split(',') {
            match texts.last_mut() {
                Some(last) if !item.contains(':') => {
                    last.push(',');
                    last.push_str(item);
                }
                _ => texts.push(item.to_owned()),
            }
        }
        for text in texts {
            let (from, to) = text.split_once(':').ok_or_else(|| BadRule(text.clone()))?;
            rules.push(parse_rule(text.trim(), from, to)?);
        }
    }
    Ok(rules)
}

fn parse_rule(text: &str, from: &str, to: &str) -> Result<Rule, BadRule> {
    let bad = || BadRule(text.to_owned());
    let source = match parse_pair(from).ok_or_else(bad)? {
        ("uid", Id::Number(uid)) => Source::Uid(uid),
        ("gid", Id::Number(gid)) => Source::Gid(gid),
        _ => return Err(bad()),
    };
    let to = to.trim();
    let allows_all = matches!(to, "any" | "*");
    let targets = match to.parse() {
        Ok(uid) if to.bytes().all(|byte| byte.is_ascii_digit()) => {
            vec![Target::Uid(Id::Number(uid))]
        }
        _ if allows_all => Vec::new(),
        _ => to
            .split(',')
            .map(|text| parse_target(text.trim()))
            .collect::<Option<_>>()
            .ok_or_else(bad)?,
    };
    Ok(Rule {
        text: text.to_owned(),
        source,
        targets,
        allows_all,
    })
}

fn parse_target(text: &str) -> Option<Target> {
    let flag = text.chars().next().filter(|c| "+!-".contains(*c));
    let (kind, id) = parse_pair(if flag.is_some() { &text[1..] } else { text })?;
    match (kind, flag) {
        ("uid", None) => Some(Target::Uid(id)),
        ("gid", None) => Some(Target::PrimaryGroup(id)),
        ("gid", Some('+')) => Some(Target::AllowedGroup(id)),
        ("gid", Some('!')) => Some(Target::RequiredGroup(id)),
        ("gid", Some(_)) => Some(Target::ForbiddenGroup(id)),
        _ => None,
    }
}

fn parse_pair(text: &str) -> Option<(&str, Id)> {
    let (kind, id) = text.split_once('=')?;
    let id = match id.trim() {
        "." => Id::Current,
        "*" | "any" => Id::Any,
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Id::Number(digits.parse().ok()?)
        }
        _ => return None,
    };
    Some((kind.trim(), id))
}

/// Evaluates the rules for a user with this primary group and these groups.
pub(crate) fn verdict(rules: &[Rule], uid: u32, gid: u32, groups: &[u32]) -> Verdict {
    let others: Vec<u32> = groups
        .iter()
        .copied()
        .filter(|group| *group != gid)
        .collect();
    let mut groups_only = None;
    for rule in rules {
        let applies = match rule.source {
            Source::Uid(from) => from == uid,
            Source::Gid(from) => from == gid || others.contains(&from),
        };
        let allows_root = rule.allows_all
            || rule.targets.iter().any(|target| {
                matches!(target, Target::Uid(Id::Number(0) | Id::Any))
                    || (uid == 0 && *target == Target::Uid(Id::Current))
            });
        if applies && allows_root {
            if rule.allows_all || allows_groups(&rule.targets, gid, &others) {
                return Verdict::Allowed(rule.text.clone());
            }
            groups_only.get_or_insert_with(|| rule.text.clone());
        }
    }
    groups_only.map_or(Verdict::NoRule, Verdict::WrongGroups)
}

/// Returns whether the targets let the groups stay unchanged. Targets without a group do.
fn allows_groups(targets: &[Target], gid: u32, others: &[u32]) -> bool {
    let matches = |id: &Id, group: u32| match id {
        Id::Number(number) => *number == group,
        Id::Current | Id::Any => true,
    };
    if targets
        .iter()
        .all(|target| matches!(target, Target::Uid(_)))
    {
        return true;
    }
    let mut primary = targets.iter().filter_map(|target| match target {
        Target::PrimaryGroup(id) => Some(matches(id, gid)),
        _ => None,
    });
    let allows_primary = primary
        .next()
        .is_none_or(|first| first || primary.any(|fits| fits));
    let allows_others = others.iter().all(|group| {
        targets.iter().any(|target| {
            matches!(target, Target::AllowedGroup(id) | Target::RequiredGroup(id) if matches(id, *group))
        })
    });
    let meets_flags = targets.iter().all(|target| match target {
        Target::RequiredGroup(Id::Number(group)) => others.contains(group),
        Target::ForbiddenGroup(Id::Number(group)) => !others.contains(group),
        Target::ForbiddenGroup(_) => others.is_empty(),
        _ => true,
    });
    allows_primary && allows_others && meets_flags
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn matching_rule_is_found_in_both_grammars() {
        let allowed = |rule: &str| Verdict::Allowed(rule.to_owned());
        let groups = |rule: &str| Verdict::WrongGroups(rule.to_owned());
        // uid 1001, gid 1001, groups 0 and 80
        for (text, expected) in [
            ("", Verdict::NoRule),
            ("uid=1001:0", allowed("uid=1001:0")),
            ("uid=1001:80", Verdict::NoRule),
            ("uid=1002:0", Verdict::NoRule),
            ("uid=1002:0,uid=1001:0", allowed("uid=1001:0")),
            ("uid=1002:0;uid=1001:any", allowed("uid=1001:any")),
            ("gid=80:0", allowed("gid=80:0")),
            ("gid=81:0", Verdict::NoRule),
            ("uid=1001:*", allowed("uid=1001:*")),
            ("uid=1001>uid=0", allowed("uid=1001>uid=0")),
            ("uid=1001 > uid=0", allowed("uid=1001 > uid=0")),
            ("uid=1001>any", allowed("uid=1001>any")),
            ("uid=1001>uid=*", allowed("uid=1001>uid=*")),
            ("uid=1001>uid=.", Verdict::NoRule),
            ("uid=1001>gid=0", Verdict::NoRule),
            ("uid=1001>uid=0,gid=0", groups("uid=1001>uid=0,gid=0")),
            (
                "uid=1001>uid=0,gid=0,+gid=.",
                groups("uid=1001>uid=0,gid=0,+gid=."),
            ),
            (
                "uid=1001>uid=0,gid=0,gid=.,+gid=.",
                allowed("uid=1001>uid=0,gid=0,gid=.,+gid=."),
            ),
            (
                "uid=1001>uid=0,gid=.,+gid=80",
                groups("uid=1001>uid=0,gid=.,+gid=80"),
            ),
            (
                "uid=1001>uid=0,gid=.,+gid=0,!gid=80",
                allowed("uid=1001>uid=0,gid=.,+gid=0,!gid=80"),
            ),
            (
                "uid=1001>uid=0,+gid=*,-gid=80",
                groups("uid=1001>uid=0,+gid=*,-gid=80"),
            ),
            (
                "uid=1001>uid=0,+gid=*,!gid=5",
                groups("uid=1001>uid=0,+gid=*,!gid=5"),
            ),
            (
                "uid=1>uid=0;uid=1001>uid=0,gid=0;gid=80>uid=0",
                allowed("gid=80>uid=0"),
            ),
            ("uid=1001:uid=0,gid=0", groups("uid=1001:uid=0,gid=0")),
        ] {
            let rules = parse(text).unwrap();
            assert_eq!(
                verdict(&rules, 1001, 1001, &[1001, 0, 80]),
                expected,
                "{text:?}"
            );
        }
        for bad in [
            "uid",
            "uid=1001",
            "uid=x:0",
            "uid=1001>",
            "uid=1001>root",
            "any>uid=0",
            "uid=.>uid=0",
            "uid=1001>+uid=0",
            "uid=1001:+0",
            "uid=4294967296:0",
            "uid=1001>uid=0,,gid=0",
            "1001:0",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn parser_never_panics(text in "[uidgany=0-9:>;,.*+!-]{0,40}|\\PC{0,40}", uid: u32, gid: u32) {
            if let Ok(rules) = parse(&text) {
                let _ = verdict(&rules, uid, gid, &[gid, 0]);
            }
        }

        #[test]
        fn rule_of_another_user_never_matches(uid in 2..1000u32, to in "any|uid=0|uid=0,gid=.|0") {
            for between in ['>', ':'] {
                let rules = parse(&format!("uid=1{between}{to}"));
                if let Ok(rules) = rules {
                    prop_assert_eq!(verdict(&rules, uid, 5, &[]), Verdict::NoRule);
                }
            }
        }
    }
}
