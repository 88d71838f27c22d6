//! Merging of a request with a profile: a table, and properties of any two.

use super::*;
use colibri_jail_core::JailConfig;
use colibri_types::{AgentRuntime, Env};
use proptest::prelude::*;

fn profile(text: &str) -> Profile {
    toml::from_str(text).unwrap()
}

#[test]
fn request_wins_and_profile_fills_its_gaps() {
    for (request, weaker, merged) in [
        ("", "", ""),
        (
            "",
            "program = 'pi'\nargs = ['a']",
            "program = 'pi'\nargs = ['a']",
        ),
        (
            "program = 'sh'",
            "program = 'pi'\nargs = ['a']",
            "program = 'sh'",
        ),
        (
            "args = ['b']",
            "program = 'pi'\nargs = ['a']",
            "program = 'pi'\nargs = ['b']",
        ),
        (
            "program = 'sh'\nargs = []",
            "args = ['a']",
            "program = 'sh'\nargs = []",
        ),
        (
            "env = { A = '1', B = '1' }",
            "env = { B = '2', C = '2' }",
            "env = { A = '1', B = '1', C = '2' }",
        ),
        (
            "env_file = '/a'",
            "env_file = '/b'\nsecrets = ['S']",
            "env_file = '/a'\nsecrets = ['S']",
        ),
        (
            "secrets = ['S', 'T']",
            "secrets = ['R', 'S']",
            "secrets = ['R', 'S', 'T']",
        ),
        (
            "cwd = '/a'\nname = 'x'",
            "cwd = '/b'\nruntime = 'pi'",
            "cwd = '/a'\nname = 'x'\nruntime = 'pi'",
        ),
        (
            "restart = 'never'\nrestart_limit = 3",
            "restart = 'always'\nrestart_delay = '2s'\nrestart_limit = 5",
            "restart = 'never'\nrestart_delay = '2s'\nrestart_limit = 3",
        ),
        (
            "jail = { user = 'a' }",
            "jail = { path = '/s', user = 'b' }",
            "jail = { path = '/s', user = 'a' }",
        ),
        ("", "jail = { path = '/s' }", "jail = { path = '/s' }"),
        ("jail = { path = '/s' }", "", "jail = { path = '/s' }"),
        // `name` and `path` are one choice.
        (
            "jail = { path = '/r' }",
            "jail = { name = 'web', user = 'u' }",
            "jail = { path = '/r', user = 'u' }",
        ),
        (
            "jail = { name = 'web' }",
            "jail = { path = '/r', ip4 = 'disable', allow = ['a:1'] }",
            "jail = { name = 'web', ip4 = 'disable', allow = ['a:1'] }",
        ),
        (
            "jail = { mounts = [{ source = '/a' }, { source = '/n', target = '/x' }] }",
            "jail = { mounts = [{ source = '/x', read_only = true }, { source = '/y' }] }",
            "jail = { mounts = [{ source = '/y' }, { source = '/a' }, { source = '/n', target = '/x' }] }",
        ),
        (
            "jail = { limits = { memory = '1G' }, allow = ['b:1'] }",
            "jail = { limits = { memory = '2G', wall_time = '8h' }, allow = ['a:1'] }",
            "jail = { limits = { memory = '1G', wall_time = '8h' }, allow = ['a:1', 'b:1'] }",
        ),
        (
            "jail = { workdir = '/w' }",
            "cwd = '/c'\njail = { path = '/' }",
            "jail = { path = '/', workdir = '/w' }",
        ),
        (
            "jail = { ip4 = 'disable' }",
            "jail = { path = '/r', ip4 = 'new' }",
            "jail = { path = '/r', ip4 = 'disable' }",
        ),
    ] {
        let found = profile(request).or(profile(weaker));
        assert_eq!(found, profile(merged), "{request} over {weaker}");
    }
}

#[test]
fn unknown_profile_is_reported_with_known_names() {
    let profiles = BTreeMap::from([
        ("review".to_owned(), profile("program = 'pi'")),
        ("fix".to_owned(), profile("program = 'zot'")),
    ]);
    let used = profile("profile = 'fix'")
        .with_named_profile(&profiles)
        .unwrap();
    assert_eq!(used.request.program.as_deref(), Some("zot"));
    assert_eq!(
        Profile::default().with_named_profile(&profiles).unwrap(),
        Profile::default()
    );
    let message = |name: &str, profiles| {
        profile(&format!("profile = '{name}'"))
            .with_named_profile(profiles)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        message("fixx", &profiles),
        "profile \"fixx\" does not exist; use one of: fix, review"
    );
    assert!(message("fix", &BTreeMap::new()).contains("[profile.NAME]"));
}

#[test]
fn env_wins_over_secrets_and_secrets_over_env_file() {
    let file = BTreeMap::from([
        ("A".to_owned(), "file".to_owned()),
        ("F".to_owned(), "file".to_owned()),
    ]);
    let with = |text: &str| {
        let mut profile = profile(text);
        profile.resolve_variables(
            |name| (name == "A").then(|| "asked".to_owned()),
            file.clone(),
        )?;
        Ok::<_, ProfileError>(profile)
    };
    for (text, a, f) in [
        ("", "file", "file"),
        ("secrets = ['A', 'F']", "asked", "file"),
        (
            "secrets = ['A']\nenv = { A = 'given', F = 'given' }",
            "given",
            "given",
        ),
    ] {
        let filled = with(text).unwrap();
        assert_eq!(
            (
                filled.request.env["A"].as_str(),
                filled.request.env["F"].as_str()
            ),
            (a, f),
            "{text}"
        );
        assert!(!format!("{filled:?}").contains("asked"));
    }
    let error = with("secrets = ['A', 'B']").unwrap_err();
    assert!(matches!(error, ProfileError::Secret { name } if name == "B"));
}

#[test]
fn durations_become_a_restart_policy() {
    let config = profile(
        "program = 'p'\nrestart = 'on-failure'\nrestart_delay = '500ms'\nrestart_window = '1h 30m'\nrestart_max_delay = '24h'",
    )
    .request
    .resolve()
    .unwrap();
    assert_eq!(
        config.restart.unwrap(),
        RestartPolicy {
            policy: Some(RestartWhen::OnFailure),
            delay_ms: Some(500),
            max_delay_ms: Some(86_400_000),
            window_ms: Some(5_400_000),
            ..RestartPolicy::default()
        }
        .with_defaults()
    );
    for bad in ["soon", "-5s", "", "5"] {
        let error = toml::from_str::<Profile>(&format!("restart_delay = '{bad}'")).unwrap_err();
        assert!(error.to_string().contains("not a duration"), "{error}");
    }
}

fn any_profile() -> impl Strategy<Value = Profile> {
    use proptest::option::of;
    let text = || of("[a-c]");
    let jail = (text(), text(), text(), text()).prop_map(|(name, path, ip4, user)| JailConfig {
        name,
        path,
        ip4,
        user,
        ..JailConfig::default()
    });
    let env = proptest::collection::btree_map("[A-C]", "[a-c]", 0..3);
    let secrets = proptest::collection::btree_set("[A-C]", 0..3);
    let times = (of(0_u64..3), of(0_u64..3), of(0_u32..3));
    let texts = (
        text(),
        of(proptest::collection::vec("[a-c]", 0..3)),
        text(),
        of(proptest::sample::select(AgentRuntime::ALL)),
        text(),
    );
    (texts, env, secrets, of(jail), times).prop_map(|(texts, env, secrets, jail, times)| Profile {
        request: SpawnRequest {
            program: texts.0,
            args: texts.1,
            cwd: texts.2,
            runtime: texts.3,
            name: texts.4,
            env: Env(env),
            jail,
            restart: times.0.map(|delay| RestartPolicy {
                delay_ms: Some(delay),
                window_ms: times.1,
                limit: times.2,
                ..RestartPolicy::default()
            }),
            ..SpawnRequest::default()
        },
        secrets,
        ..Profile::default()
    })
}

proptest! {
    #[test]
    fn merge_keeps_the_request_and_is_idempotent(
        request in any_profile(), weaker in any_profile(),
    ) {
        let nothing = Profile::default;
        prop_assert_eq!(&request.clone().or(nothing()), &request);
        prop_assert_eq!(&nothing().or(weaker.clone()), &weaker);
        let merged = request.clone().or(weaker.clone());
        // Idempotent: the result contains the whole request.
        prop_assert_eq!(&request.clone().or(merged.clone()), &merged);
        for (name, value) in merged.request.env.iter() {
            let from = request.request.env.get(name).or(weaker.request.env.get(name));
            prop_assert_eq!(Some(value), from);
        }
        for (own, weaker, merged) in [
            (&request.request.program, &weaker.request.program, &merged.request.program),
            (&request.request.cwd, &weaker.request.cwd, &merged.request.cwd),
            (&request.request.name, &weaker.request.name, &merged.request.name),
        ] {
            prop_assert_eq!(own.as_ref().or(weaker.as_ref()), merged.as_ref());
        }
        // A requested confinement is never lost.
        let asked = [&request, &weaker].iter().filter_map(|p| p.request.jail.as_ref()).any(|jail| jail.name.is_some() || jail.path.is_some());
        let given = merged.request.jail.as_ref().is_some_and(|jail| jail.name.is_some() || jail.path.is_some());
        prop_assert_eq!(asked, given);
    }
}
