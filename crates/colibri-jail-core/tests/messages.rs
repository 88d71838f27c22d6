//! The message of each validation error.

#![allow(clippy::unwrap_used)]

use std::fmt::Write;

use colibri_jail_core::{
    Bubblewrap, CommandLine, Confinement, EngineRegistry, FreebsdJail, JailConfig, JailEngine,
    JailError, JailName, JailOp, JailPath, JailUser, Pid, Signal, jail_wrap,
};

fn error<T: std::str::FromStr<Err = JailError> + std::fmt::Debug>(text: &str) -> String {
    text.parse::<T>().unwrap_err().to_string()
}

#[test]
fn every_error_message_has_a_hint() {
    let mut shown = String::new();
    let mut show = |message: String| writeln!(shown, "{message}").unwrap();
    for program in [("", ""), ("a\0", ""), ("a", "b\0")] {
        show(
            CommandLine::new(program.0, [program.1])
                .unwrap_err()
                .to_string(),
        );
    }
    let long = "a".repeat(300);
    for name in [
        "", "-a", "12", "a.b", "a,b", "a=b", "a'b", "a b", "a\0", "a\u{7}", "a/b", &long,
    ] {
        show(error::<JailName>(name));
    }
    let long = format!("/{}", "a".repeat(2000));
    for path in ["", "srv", "/srv/..", "/a\0", "/a\u{7}", &long] {
        show(error::<JailPath>(path));
    }
    for user in ["", "-l", "4294967295", "a:b", &"a".repeat(40)] {
        show(error::<JailUser>(user));
    }
    for ip4 in ["", "lan", "192.0.2.7,192.0.2.7", "0.0.0.0"] {
        show(
            ip4.parse::<colibri_jail_core::Ip4Policy>()
                .unwrap_err()
                .to_string(),
        );
    }
    show(error::<Signal>("64"));
    let engines = EngineRegistry::builtin();
    show(engines.get("docker").unwrap_err().to_string());
    show(Pid::new(1).unwrap_err().to_string());
    for (name, path, ip4, user, engine) in [
        ("web", "", "new", "", "freebsd"),
        ("", "", "new", "", "freebsd"),
        ("", "", "", "root", "freebsd"),
        ("web", "", "", "", "bubblewrap"),
        ("web", "", "", "1000", "freebsd"),
        ("", "/srv", "", "agent", "bubblewrap"),
        ("", "/srv", "new", "", "bubblewrap"),
        ("", "/s r", "", "", "freebsd"),
    ] {
        let value = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let config = JailConfig {
            name: value(name),
            path: value(path),
            ip4: value(ip4),
            user: value(user),
            ..JailConfig::default()
        };
        let engine = engines.get(engine).unwrap();
        let command = CommandLine::new("pi", ["x"]).unwrap();
        let wrapped = config
            .confinement(&"colibri-x".parse().unwrap())
            .and_then(|confinement| jail_wrap(&*engine, &confinement, None, command));
        show(wrapped.unwrap_err().to_string());
    }
    for (config, engine) in [
        (r#"{"path":"/","mounts":[{"source":"w"}]}"#, "bubblewrap"),
        (r#"{"path":"/","mounts":[{"source":"/"}]}"#, "bubblewrap"),
        (
            r#"{"path":"/","mounts":[{"source":"/dev/null"}]}"#,
            "bubblewrap",
        ),
        (
            r#"{"path":"/","mounts":[{"source":"/a"},{"source":"/b","target":"/a"}]}"#,
            "bubblewrap",
        ),
        (r#"{"path":"/a b"}"#, "freebsd"),
        (r#"{"name":"web","mounts":[{"source":"/a"}]}"#, "freebsd"),
        (r#"{"mounts":[{"source":"/a"}]}"#, "freebsd"),
        (r#"{"workdir":"/a"}"#, "freebsd"),
        (r#"{"path":"/","hostname":"a b"}"#, "bubblewrap"),
        (r#"{"path":"/","allow":["everything"]}"#, "bubblewrap"),
        (
            r#"{"path":"/","allow":["a:1"],"ip4":"inherit"}"#,
            "bubblewrap",
        ),
        (r#"{"path":"/","allow":["a:1"]}"#, "bubblewrap"),
        (r#"{"path":"/","allow":["a:1"]}"#, "freebsd"),
        (r#"{"limits":{"memory":1}}"#, "bubblewrap"),
    ] {
        let config: JailConfig = serde_json::from_str(config).unwrap();
        let command = CommandLine::new("pi", ["x"]).unwrap();
        let wrapped = config
            .confinement(&"colibri-x".parse().unwrap())
            .and_then(|confinement| jail_wrap(&*engines.get(engine)?, &confinement, None, command));
        show(wrapped.unwrap_err().to_string());
    }
    show(error::<colibri_jail_core::MountConfig>("/a:/b:/c"));
    show(error::<colibri_jail_core::Size>("2 big"));
    show(error::<colibri_jail_core::Cpus>("all"));
    show(error::<colibri_jail_core::WallTime>("soon"));
    let name = || "x".parse().unwrap();
    for op in [JailOp::List, JailOp::Remove { name: name() }] {
        show(
            Bubblewrap::default()
                .command_line(&op)
                .unwrap_err()
                .to_string(),
        );
    }
    let mut masked = JailConfig {
        path: Some("/".into()),
        ..JailConfig::default()
    }
    .confinement(&name())
    .unwrap();
    if let Confinement::Ephemeral(jail) = &mut masked {
        jail.masked.push("/var/db/colibri".parse().unwrap());
    }
    let command = CommandLine::new("pi", ["x"]).unwrap();
    show(
        jail_wrap(&FreebsdJail::default(), &masked, None, command)
            .unwrap_err()
            .to_string(),
    );
    insta::assert_snapshot!(shown);
}
