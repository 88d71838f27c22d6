//! Jails whose TLS connections the proxy terminates: their commands, and the engines that refuse them.

#![allow(clippy::unwrap_used)]

use colibri_jail_core::{
    Bubblewrap, CommandLine, Confinement, FreebsdJail, JailConfig, JailEngine, JailPath, jail_wrap,
};

fn path(text: &str) -> JailPath {
    text.parse().unwrap()
}

/// Returns the command for a sandbox that colibri-sandbox completes, or does not, or the error.
fn command(engine: &dyn JailEngine, fields: &str, completed: bool) -> Result<String, String> {
    let config: JailConfig = serde_json::from_str(&format!(r#"{{"path":"/",{fields}}}"#)).unwrap();
    let mut confinement = config.confinement(&"colibri-x".parse().unwrap()).unwrap();
    if let Confinement::Ephemeral(jail) = &mut confinement {
        jail.sandbox.completed = completed;
    }
    let agent = CommandLine::new("true", Vec::<String>::new()).unwrap();
    jail_wrap(engine, &confinement, None, agent)
        .map(|command| command.to_string())
        .map_err(|error| error.to_string())
}

fn bubblewrap() -> Bubblewrap {
    Bubblewrap::default()
        .with_proxy(path("/p"))
        .with_sandbox(path("/s"), Vec::new())
}

#[test]
fn sandbox_gets_the_certificates_of_the_proxy() {
    for (fields, options) in [
        (
            r#""credentials":["K@a=X-Key: {}"]"#,
            "/p run --ca 20 --ca-bundle 21 --events 182 --credential 'K@a:443=x-key: {}' a:443 -- /s run ",
        ),
        (
            r#""allow":["GET https://a/x/*"]"#,
            "/p run --ca 20 --ca-bundle 21 --events 182 'GET https://a/x/*' -- /s run ",
        ),
    ] {
        let command = command(&bubblewrap(), fields, true).unwrap();
        assert!(command.starts_with(options), "{command}");
        let files = "--perms 0444 --ro-bind-data 20 /dev/colibri-ca.pem --perms 0444 --ro-bind-data 21 /dev/colibri-ca-bundle.pem";
        assert!(command.contains(files), "{command}");
    }
    let plain = command(&bubblewrap(), r#""allow":["a:443","http://a/*"]"#, true).unwrap();
    assert!(
        plain.starts_with("/p run --events 182 a:443 'http://a/*' -- /s run "),
        "{plain}"
    );
    assert!(!plain.contains("colibri-ca"), "{plain}");
}

#[test]
fn engine_without_certificates_in_the_jail_refuses() {
    let freebsd = FreebsdJail::default().with_proxy(path("/p"));
    for (fields, field) in [
        (r#""credentials":["K@a"]"#, "`credentials`"),
        (r#""allow":["https://a/*"]"#, "`allow`"),
    ] {
        let refused = [
            (command(&freebsd, fields, false), "bubblewrap only"),
            (
                command(&bubblewrap(), fields, false),
                "privilege backend none",
            ),
        ];
        for (refused, hint) in refused {
            let error = refused.unwrap_err();
            assert!(error.starts_with(field) && error.contains(hint), "{error}");
        }
        assert!(command(&freebsd, r#""allow":["http://a/*"]"#, false).is_ok());
    }
}
