//! The exact argv of every combination of engine, backend and confinement, as snapshots.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fmt::Write;

use std::sync::Arc;

use colibri_jail_core::{
    Bubblewrap, CommandLine, FreebsdJail, JailConfig, JailEngine, JailOp, JailPath,
};
use colibri_priv::{BackendRegistry, PrivBackend};

const NAME: Option<&str> = Some("web");
const PATH: Option<&str> = Some("/srv/agent");
const JAILS: [(&str, Option<&str>, Option<&str>); 4] = [
    ("no jail", None, None),
    ("name", NAME, None),
    ("path", None, PATH),
    ("both", NAME, PATH),
];
const USERS: [Option<&str>; 3] = [None, Some("agent"), Some("1001:1002")];
const IP4: [Option<&str>; 6] = [
    None,
    Some("inherit"),
    Some("disable"),
    Some("new"),
    Some("192.0.2.7"),
    Some("192.0.2.7,192.0.2.8"),
];

fn backend(mode: &str) -> Arc<dyn PrivBackend> {
    BackendRegistry::builtin("/usr/local/libexec/colibri-jail-helper")
        .get(mode)
        .unwrap()
}

fn table(mode: &str, engine: &dyn JailEngine) -> String {
    let backend = backend(mode);
    let agent = CommandLine::new("/usr/local/bin/pi", ["--mode", "json", "fix it"]).unwrap();
    let mut table = format!(
        "{:<8} {:<10} {:<20} argv, or ! and the error\n",
        "jail", "user", "ip4"
    );
    for (shown, name, path) in JAILS {
        for user in USERS {
            for ip4 in IP4 {
                let text = |value: Option<&str>| value.map(str::to_owned);
                let config = JailConfig {
                    name: text(name),
                    path: text(path),
                    ip4: text(ip4),
                    user: text(user),
                    ..JailConfig::default()
                };
                let wrapped = config
                    .confinement(&"colibri-k3x9".parse().unwrap())
                    .map_err(|error| error.to_string())
                    .and_then(
                        |confinement| match confinement.into_op(None, agent.clone()) {
                            None => Ok(agent.clone()),
                            Some(op) => backend
                                .elevate(&op, engine)
                                .map_err(|error| error.to_string()),
                        },
                    );
                let result = match wrapped {
                    Ok(command) => command.to_string(),
                    Err(error) => format!("! {error}"),
                };
                let (user, ip4) = (user.unwrap_or("-"), ip4.unwrap_or("-"));
                writeln!(table, "{shown:<8} {user:<10} {ip4:<20} {result}").unwrap();
            }
        }
    }
    table
}

/// The engines, with a proxy for those that support one.
fn engines() -> [Arc<dyn JailEngine>; 2] {
    let proxy: JailPath = "/usr/libexec/colibri-proxy".parse().unwrap();
    [
        Arc::new(FreebsdJail::default().with_proxy(proxy.clone())),
        Arc::new(Bubblewrap::default().with_proxy(proxy)),
    ]
}

#[test]
fn argv_of_every_engine_and_backend() {
    for engine in engines() {
        for mode in ["mdo", "helper", "none"] {
            let name = format!("{}-{mode}", engine.name());
            insta::assert_snapshot!(name, table(mode, &*engine));
        }
    }
}

/// Includes the commands before and after each run.
#[test]
fn argv_of_every_jail_setup() {
    const SETUPS: &[&str] = &[
        r#""mounts":[{"source":"/home/dev/p"}],"workdir":"/home/dev/p""#,
        r#""mounts":[{"source":"/w/sub","target":"/work/sub","read_only":true},{"source":"/w","target":"/work"}]"#,
        r#""hostname":"sandbox""#,
        r#""allow":["api.example.com:443","[::1]:8080"]"#,
        r#""limits":{"memory":"2G","processes":64,"cpu":1.5,"open_files":256,"wall_time":"8h"}"#,
        r#""mounts":[{"source":"/w"}],"limits":{"memory":"2G"}"#,
    ];
    for engine in engines() {
        let mut table = String::new();
        for mode in ["mdo", "helper", "none"] {
            for setup in SETUPS {
                let config: JailConfig =
                    serde_json::from_str(&format!(r#"{{"path":"/jails/agent",{setup}}}"#)).unwrap();
                writeln!(table, "{mode} {setup}").unwrap();
                let op = config
                    .confinement(&"colibri-k3x9".parse().unwrap())
                    .unwrap()
                    .into_op(
                        config.workdir().unwrap(),
                        CommandLine::new("pi", ["x"]).unwrap(),
                    )
                    .unwrap();
                let mut show = |phase: &str, op: &JailOp| {
                    let mut elevated = backend(mode).elevate(op, &*engine);
                    if let (JailOp::Create { jail, .. }, Some(proxy)) = (op, engine.outer_proxy())
                        && !jail.allow.is_empty()
                    {
                        elevated = elevated.map(|command| command.filtered(proxy, &jail.allow));
                    }
                    let shown = elevated
                        .map_or_else(|error| format!("! {error}"), |command| command.to_string());
                    writeln!(table, "{phase:>8} {shown}").unwrap();
                };
                for op in engine.pre_run(&op, &config.limits).unwrap() {
                    show("pre-run", &op);
                }
                show("run", &op);
                for op in engine.post_run(&op, &config.limits).unwrap() {
                    show("post-run", &op);
                }
            }
        }
        insta::assert_snapshot!(format!("{}-setup", engine.name()), table);
    }
}
