//! Resolves an agent selector to an agent. Does no I/O: the caller lists the agents.
//!
//! The order is: full id, exact name, id prefix. A name takes precedence over an id prefix, so that an agent stays
//! reachable by its name when another one gets an id that starts with it.

use std::cmp::Reverse;

use colibri_proto::Agent;

/// Minimum length of an id prefix, in characters.
pub const MIN_PREFIX: usize = 4;

/// A selector that does not select exactly one agent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// The selector is empty or whitespace, usually from an unset shell variable.
    #[error("no agent selected: the id or name is empty; give an id or a name from colibri ps")]
    Blank,
    /// No agent matches.
    #[error("no agent with ID, ID prefix or name {0:?}; list all agents with colibri ps")]
    Unknown(String),
    /// The selector is a prefix of an id, but shorter than [`MIN_PREFIX`].
    #[error(
        "no agent with name {0:?}, and it is too short for an ID prefix; give at least {MIN_PREFIX} characters of the ID"
    )]
    PrefixTooShort(String),
    /// The selector is a prefix of several ids, or the name of several running agents, which only daemons of earlier
    /// versions allow.
    #[error("{selector:?} is {reason}: {}; give the whole ID of one", ids.join(", "))]
    Ambiguous {
        /// The selector.
        selector: String,
        /// What the selector is, for the message.
        reason: &'static str,
        /// Ids of the matching agents, in order.
        ids: Vec<String>,
    },
}

/// Refuses an empty or whitespace selector.
///
/// # Errors
/// [`ResolveError::Blank`].
pub fn refuse_blank(selector: &str) -> Result<(), ResolveError> {
    match selector.trim() {
        "" => Err(ResolveError::Blank),
        _ => Ok(()),
    }
}

/// Returns the agent that `selector` selects. First the agent with this id; else the running agent with this name, or the
/// newest ended one; else the only agent whose id starts with `selector`, if it has at least [`MIN_PREFIX`] characters.
///
/// # Errors
/// [`ResolveError`] if no agent is selected, or more than one.
pub fn resolve<'a>(agents: &'a [Agent], selector: &str) -> Result<&'a Agent, ResolveError> {
    refuse_blank(selector)?;
    if let Some(agent) = agents.iter().find(|agent| agent.id == selector) {
        return Ok(agent);
    }
    if let Some(agent) = by_name(agents, selector)? {
        return Ok(agent);
    }
    let matches: Vec<&Agent> = agents
        .iter()
        .filter(|agent| agent.id.starts_with(selector))
        .collect();
    match matches[..] {
        [] => Err(ResolveError::Unknown(selector.to_owned())),
        _ if selector.chars().count() < MIN_PREFIX => {
            Err(ResolveError::PrefixTooShort(selector.to_owned()))
        }
        [agent] => Ok(agent),
        _ => Err(ambiguous(selector, "a prefix of several IDs", &matches)),
    }
}

fn by_name<'a>(agents: &'a [Agent], selector: &str) -> Result<Option<&'a Agent>, ResolveError> {
    let named = agents
        .iter()
        .filter(|agent| agent.name.as_deref() == Some(selector));
    let (running, ended): (Vec<&Agent>, Vec<&Agent>) =
        named.partition(|agent| agent.exited_at.is_none());
    match running[..] {
        [agent] => Ok(Some(agent)),
        [] => Ok(ended
            .into_iter()
            .min_by_key(|agent| Reverse((&agent.started_at, &agent.exited_at, &agent.id)))),
        _ => Err(ambiguous(
            selector,
            "the name of several running agents",
            &running,
        )),
    }
}

fn ambiguous(selector: &str, reason: &'static str, agents: &[&Agent]) -> ResolveError {
    let mut ids: Vec<String> = agents.iter().map(|agent| agent.id.clone()).collect();
    ids.sort();
    ResolveError::Ambiguous {
        selector: selector.to_owned(),
        reason,
        ids,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// Returns an agent that started at this second, and ended one second later if `ended`.
    fn agent(id: &str, name: Option<&str>, started: u32, ended: bool) -> Agent {
        let at = |second: u32| format!("2026-01-01T00:00:{second:02}.000Z");
        let exited_at = ended.then(|| at(started + 1));
        let agent = json!({"id": id, "name": name, "state": "working", "pid": 7, "program": "sh", "args": [],
            "jail": null, "runtime": "generic", "run": 1, "started_at": at(started), "exited_at": exited_at,
            "stdout_bytes": 0, "stderr_bytes": 0});
        serde_json::from_value(agent).unwrap()
    }

    #[test]
    fn resolve_follows_the_documented_order() {
        let agents = [
            agent("qz8abcdefg", Some("precious"), 1, false),
            agent("zaaa111111", Some("z"), 2, true),
            agent("zaaa222222", Some("z"), 4, true),
            agent("zaaa333333", Some("z"), 3, true),
            agent("twin111111", Some("both"), 5, false),
            agent("twin222222", Some("both"), 9, true),
            agent("late111111", Some("qz8abcdefg"), 9, false),
            agent("old1111111", Some("twin"), 9, false),
            agent("two1111111", Some("doubled"), 1, false),
            agent("two2222222", Some("doubled"), 2, false),
        ];
        for (selector, expected) in [
            ("precious", Ok("qz8abcdefg")),
            ("qz8abcdefg", Ok("qz8abcdefg")),
            ("qz8abc", Ok("qz8abcdefg")),
            ("qz8a", Ok("qz8abcdefg")),
            ("qz8", Err("too short")),
            ("q", Err("too short")),
            ("z", Ok("zaaa222222")),
            ("zaaa", Err("zaaa111111, zaaa222222, zaaa333333")),
            ("zaaa3", Ok("zaaa333333")),
            ("both", Ok("twin111111")),
            ("twin", Ok("old1111111")),
            ("twin2", Ok("twin222222")),
            (
                "doubled",
                Err("several running agents: two1111111, two2222222"),
            ),
            ("Precious", Err("no agent with ID")),
            ("precious ", Err("no agent with ID")),
            ("x", Err("no agent with ID")),
            ("qz8abcdefgh", Err("no agent with ID")),
            ("", Err("is empty")),
            (" \t\n", Err("is empty")),
            ("\u{2003}", Err("is empty")),
        ] {
            let found = resolve(&agents, selector);
            match (found, expected) {
                (Ok(found), Ok(id)) => assert_eq!(found.id, id, "{selector:?}"),
                (Err(error), Err(part)) => {
                    assert!(error.to_string().contains(part), "{selector:?}: {error}");
                }
                (found, _) => panic!("{selector:?}: {found:?}"),
            }
        }
        assert_eq!(resolve(&[], ""), Err(ResolveError::Blank));
    }

    proptest! {
        #[test]
        fn exact_name_always_beats_an_id_prefix(
            ids in prop::collection::btree_set("[ab]{10}", 1..8),
            name in "[ab]{1,9}",
            index in any::<prop::sample::Index>(),
            ended in any::<bool>(),
        ) {
            let ids: Vec<String> = ids.into_iter().collect();
            let owner = index.get(&ids);
            let agents: Vec<Agent> = ids
                .iter()
                .map(|id| agent(id, (id == owner).then_some(&*name), 1, ended))
                .collect();
            prop_assert_eq!(&resolve(&agents, &name).unwrap().id, owner);
        }

        #[test]
        fn ambiguous_prefix_selects_no_agent(
            ids in prop::collection::btree_set("[ab]{6}", 0..12),
            selector in "[ab ]{0,7}",
        ) {
            let agents: Vec<Agent> = ids.iter().map(|id| agent(id, None, 1, false)).collect();
            let matches = ids.iter().filter(|id| id.starts_with(&selector)).count();
            match resolve(&agents, &selector) {
                Ok(found) => {
                    prop_assert!(found.id == selector || (matches == 1 && selector.len() >= MIN_PREFIX));
                }
                Err(_) => prop_assert!(!ids.contains(&selector) && (matches != 1 || selector.len() < MIN_PREFIX)),
            }
        }
    }
}
