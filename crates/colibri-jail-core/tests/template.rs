//! Roots from templates on FreeBSD: what jail(8) and the monitor get, and what is refused.
#![allow(clippy::unwrap_used, clippy::panic)]

use colibri_jail_core::{
    Bubblewrap, CommandLine, Confinement, FreebsdJail, JailConfig, JailEngine, JailOp, Limits,
};

fn op(config: &str) -> Result<JailOp, String> {
    let config: JailConfig = serde_json::from_str(config).unwrap();
    let confinement = config.confinement(&"colibri-k3x9".parse().unwrap());
    let command = CommandLine::new("/bin/agent", ["one"]).unwrap();
    let op = confinement
        .map_err(|error| error.to_string())?
        .into_op(None, command);
    Ok(op.unwrap())
}

/// Returns the command of jail(8), the monitor's command, and that of the clean-up.
fn commands(config: &str) -> String {
    let engine = FreebsdJail::default();
    let mut op = op(config).unwrap();
    if let JailOp::Create { jail, .. } = &mut op
        && jail.is_template
    {
        jail.writable.push("/home/agent".parse().unwrap());
    }
    let jail = engine.command_line(&op).unwrap();
    let monitored = CommandLine::new("/usr/bin/true", [""; 0]).unwrap();
    let monitor = engine.monitor(&op, &monitored).unwrap();
    let clean = engine.post_run(&op, &Limits::default()).unwrap();
    let helper = [monitor].into_iter().chain(clean);
    let lines = helper.map(|op| engine.command_line(&op).unwrap().to_string());
    [vec![jail.to_string()], lines.collect()]
        .concat()
        .join("\n")
}

#[test]
fn commands_of_a_template_match_snapshot() {
    insta::assert_snapshot!(commands(
        r#"{"template":"/usr/local/jails/my agents","fdescfs":true,"user":"agent","mounts":[{"source":"/p","target":"/tmp/a/p"},{"source":"/q"}]}"#
    ));
}

#[test]
fn commands_of_devfs_in_an_existing_root_match_snapshot() {
    insta::assert_snapshot!(commands(r#"{"path":"/r","devfs":true}"#));
}

#[test]
fn impossible_root_is_refused() {
    for (config, expected) in [
        (
            r#"{"path":"/r","template":"/t"}"#,
            "`path` and `template` are alternatives",
        ),
        (
            r#"{"name":"web","template":"/t"}"#,
            "`template` applies to a new jail",
        ),
        (
            r#"{"name":"web","devfs":true}"#,
            "`devfs` applies to a new jail",
        ),
        (r#"{"fdescfs":true}"#, "`fdescfs` needs a jail"),
        (r#"{"template":"t"}"#, "is relative"),
    ] {
        let error = op(config).unwrap_err();
        assert!(error.contains(expected), "{config}: {error}");
    }
    for config in [r#"{"template":"/t"}"#, r#"{"path":"/r","devfs":true}"#] {
        let error = Bubblewrap::default().command_line(&op(config).unwrap());
        let error = error.unwrap_err().to_string();
        assert!(error.contains("is for FreeBSD jails"), "{error}");
    }
}

#[test]
fn stronger_root_replaces_a_weaker_one() {
    let config = |text: &str| serde_json::from_str::<JailConfig>(text).unwrap();
    for (strong, weak, expected) in [
        (
            r#"{"template":"/t"}"#,
            r#"{"path":"/r"}"#,
            r#"{"template":"/t"}"#,
        ),
        (
            r#"{"path":"/r"}"#,
            r#"{"template":"/t"}"#,
            r#"{"path":"/r"}"#,
        ),
        (r#"{"name":"n"}"#, r#"{"template":"/t"}"#, r#"{"name":"n"}"#),
        (
            r#"{"fdescfs":true}"#,
            r#"{"template":"/t"}"#,
            r#"{"template":"/t","fdescfs":true}"#,
        ),
    ] {
        assert_eq!(
            config(strong).or(config(weak)),
            config(expected),
            "{strong}"
        );
    }
}

#[test]
fn root_of_a_template_belongs_to_one_jail() {
    let root = |config: &str| match op(config) {
        Ok(JailOp::Create { jail, .. }) => jail.root().to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        root(r#"{"template":"/t"}"#),
        "/var/run/colibri-roots/colibri-k3x9"
    );
    assert_eq!(root(r#"{"path":"/r"}"#), "/r");
    let none = JailConfig::default().confinement(&"colibri-k3x9".parse().unwrap());
    assert_eq!(none, Ok(Confinement::None));
}
