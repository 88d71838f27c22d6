//! What people read when a value is refused: one line for each refusal.

#![allow(clippy::unwrap_used)]

use std::fmt::Write;

use colibri_jail_core::{
    CommandLine, JailConfig, JailEngine, JailError, JailName, JailOp, JailPath, JailUser, Pid,
    Signal, jail_wrap,
};

fn refusal<T: std::str::FromStr<Err = JailError> + std::fmt::Debug>(text: &str) -> String {
    text.parse::<T>().unwrap_err().to_string()
}

#[test]
fn every_refusal_says_what_to_do() {
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
        show(refusal::<JailName>(name));
    }
    let long = format!("/{}", "a".repeat(2000));
    for path in ["", "srv", "/srv/..", "/a\0", "/a\u{7}", &long] {
        show(refusal::<JailPath>(path));
    }
    for user in ["", "-l", "4294967295", "a:b", &"a".repeat(40)] {
        show(refusal::<JailUser>(user));
    }
    for ip4 in ["", "lan", "192.0.2.7,192.0.2.7", "0.0.0.0"] {
        show(
            ip4.parse::<colibri_jail_core::Ip4Policy>()
                .unwrap_err()
                .to_string(),
        );
    }
    show(refusal::<Signal>("64"));
    show(refusal::<JailEngine>("docker"));
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
        let engine = engine.parse().unwrap();
        let command = CommandLine::new("pi", ["x"]).unwrap();
        let wrapped = config
            .confinement(&"colibri-x".parse().unwrap())
            .and_then(|confinement| jail_wrap(&engine, &confinement, None, command));
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
        (r#"{"path":"/","mounts":[{"source":"/a b"}]}"#, "freebsd"),
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
            .and_then(|confinement| jail_wrap(&engine.parse()?, &confinement, None, command));
        show(wrapped.unwrap_err().to_string());
    }
    show(refusal::<colibri_jail_core::MountConfig>("/a:/b:/c"));
    show(refusal::<colibri_jail_core::Size>("2 big"));
    show(refusal::<colibri_jail_core::Cpus>("all"));
    show(refusal::<colibri_jail_core::WallTime>("soon"));
    let bubblewrap: JailEngine = "bubblewrap".parse().unwrap();
    show(bubblewrap.check(&JailOp::List).unwrap_err().to_string());
    show(
        bubblewrap
            .check(&JailOp::Remove {
                name: "x".parse().unwrap(),
            })
            .unwrap_err()
            .to_string(),
    );
    insta::assert_snapshot!(shown);
}
