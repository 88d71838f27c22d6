//! The rules of mac_do(4), in both grammars: which of them lets a user become root with the groups that it has, as
//! `mdo -i` asks. Pure, so that it is tested where there is no FreeBSD.
//!
//! 15 writes `uid=1001>uid=0,gid=.,+gid=.` with `;` between rules, 14 `uid=1001:0` with `,` or `;`.

/// A user or group in a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Id {
    Number(u32),
    /// `.`: what the process has already.
    Current,
    /// `*` or `any`.
    Any,
}

/// What a clause says of a group (mac_do(4)): none is the primary one, `+` may, `!` must, `-` must not be among the
/// supplementary ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clause {
    Uid(Id),
    Primary(Id),
    May(Id),
    Must(Id),
    MustNot(Id),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Uid(u32),
    Gid(u32),
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    text: String,
    from: From,
    to: Vec<Clause>,
    /// Any user and any groups, whatever `to` holds.
    anything: bool,
}

/// Text that is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no rule of mac_do(4)")]
pub(crate) struct BadRule(pub(crate) String);

/// What the rules say to one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// This rule lets it.
    Allowed(String),
    /// This rule would, were it not for the groups that it has.
    Groups(String),
    /// No rule lets it become root.
    NoRule,
}

/// Reads `security.mac.do.rules`.
pub(crate) fn parse(text: &str) -> Result<Vec<Rule>, BadRule> {
    let mut rules = Vec::new();
    for part in text
        .split(';')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        if let Some((from, to)) = part.split_once('>') {
            rules.push(rule(part, from, to)?);
            continue;
        }
        // Between rules of 14 there may be commas, and 15 takes ':' for '>' too: what has none goes on with the targets.
        let mut whole: Vec<String> = Vec::new();
        for piece in part.split(',') {
            match whole.last_mut() {
                Some(last) if !piece.contains(':') => {
                    last.push(',');
                    last.push_str(piece);
                }
                _ => whole.push(piece.to_owned()),
            }
        }
        for text in whole {
            let (from, to) = text.split_once(':').ok_or_else(|| BadRule(text.clone()))?;
            rules.push(rule(text.trim(), from, to)?);
        }
    }
    Ok(rules)
}

fn rule(text: &str, from: &str, to: &str) -> Result<Rule, BadRule> {
    let bad = || BadRule(text.to_owned());
    let from = match pair(from).ok_or_else(bad)? {
        ("uid", Id::Number(uid)) => From::Uid(uid),
        ("gid", Id::Number(gid)) => From::Gid(gid),
        _ => return Err(bad()),
    };
    let to = to.trim();
    let anything = matches!(to, "any" | "*");
    let clauses = match to.parse() {
        Ok(uid) if to.bytes().all(|byte| byte.is_ascii_digit()) => {
            vec![Clause::Uid(Id::Number(uid))]
        }
        _ if anything => Vec::new(),
        _ => to
            .split(',')
            .map(|text| clause(text.trim()))
            .collect::<Option<_>>()
            .ok_or_else(bad)?,
    };
    Ok(Rule {
        text: text.to_owned(),
        from,
        to: clauses,
        anything,
    })
}

fn clause(text: &str) -> Option<Clause> {
    let flag = text.chars().next().filter(|c| "+!-".contains(*c));
    let (kind, id) = pair(if flag.is_some() { &text[1..] } else { text })?;
    match (kind, flag) {
        ("uid", None) => Some(Clause::Uid(id)),
        ("gid", None) => Some(Clause::Primary(id)),
        ("gid", Some('+')) => Some(Clause::May(id)),
        ("gid", Some('!')) => Some(Clause::Must(id)),
        ("gid", Some(_)) => Some(Clause::MustNot(id)),
        _ => None,
    }
}

fn pair(text: &str) -> Option<(&str, Id)> {
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

/// What the rules say to a user with this primary group and these others.
pub(crate) fn verdict(rules: &[Rule], uid: u32, gid: u32, groups: &[u32]) -> Verdict {
    let others: Vec<u32> = groups
        .iter()
        .copied()
        .filter(|group| *group != gid)
        .collect();
    let mut groups_only = None;
    for rule in rules {
        let mine = match rule.from {
            From::Uid(from) => from == uid,
            From::Gid(from) => from == gid || others.contains(&from),
        };
        let root = rule.anything
            || rule.to.iter().any(|clause| {
                matches!(clause, Clause::Uid(Id::Number(0) | Id::Any))
                    || (uid == 0 && *clause == Clause::Uid(Id::Current))
            });
        if mine && root {
            if rule.anything || groups_stay(&rule.to, gid, &others) {
                return Verdict::Allowed(rule.text.clone());
            }
            groups_only.get_or_insert_with(|| rule.text.clone());
        }
    }
    groups_only.map_or(Verdict::NoRule, Verdict::Groups)
}

/// Whether a rule's targets let the groups stay as they are; one that says nothing of groups does.
fn groups_stay(to: &[Clause], gid: u32, others: &[u32]) -> bool {
    let is = |id: &Id, group: u32| match id {
        Id::Number(number) => *number == group,
        Id::Current | Id::Any => true,
    };
    let speaks = to.iter().any(|clause| !matches!(clause, Clause::Uid(_)));
    let mut primary = to.iter().filter_map(|clause| match clause {
        Clause::Primary(id) => Some(is(id, gid)),
        _ => None,
    });
    let primary_stays = match primary.next() {
        None => true,
        Some(first) => first || primary.any(|fits| fits),
    };
    let others_stay = others.iter().all(|group| {
        to.iter()
            .any(|clause| matches!(clause, Clause::May(id) | Clause::Must(id) if is(id, *group)))
    });
    let demands_met = to.iter().all(|clause| match clause {
        Clause::Must(Id::Number(group)) => others.contains(group),
        Clause::MustNot(Id::Number(group)) => !others.contains(group),
        Clause::MustNot(_) => others.is_empty(),
        _ => true,
    });
    !speaks || (primary_stays && others_stay && demands_met)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_grammars_are_read_and_the_rule_that_fits_is_found() {
        let allowed = |rule: &str| Verdict::Allowed(rule.to_owned());
        let groups = |rule: &str| Verdict::Groups(rule.to_owned());
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
        fn whatever_the_kernel_says_is_answered(text in "[uidgany=0-9:>;,.*+!-]{0,40}|\\PC{0,40}", uid: u32, gid: u32) {
            if let Ok(rules) = parse(&text) {
                let _ = verdict(&rules, uid, gid, &[gid, 0]);
            }
        }

        #[test]
        fn a_rule_for_another_user_never_lets_one_in(uid in 2..1000u32, to in "any|uid=0|uid=0,gid=.|0") {
            for between in ['>', ':'] {
                let rules = parse(&format!("uid=1{between}{to}"));
                if let Ok(rules) = rules {
                    prop_assert_eq!(verdict(&rules, uid, 5, &[]), Verdict::NoRule);
                }
            }
        }
    }
}
