//! Confinements, by both engines.

use colibri_jail_core::{
    Bubblewrap, CommandLine, JailConfig, JailEngine, JailOp, Limits, MountConfig, Size, jail_wrap,
};

use super::Operation;

pub(crate) fn all() -> Vec<Operation> {
    let config = |name: Option<&str>, path: Option<&str>| JailConfig {
        name: name.map(str::to_owned),
        path: path.map(str::to_owned),
        ..JailConfig::default()
    };
    let mut mounted = config(None, Some("/"));
    mounted.mounts.extend((0..10).map(|number| MountConfig {
        source: format!("/work/project-{number}"),
        target: None,
        read_only: number % 2 == 0,
    }));
    mounted.limits = Limits {
        memory: Some(Size(1 << 30)),
        processes: Some(100),
        open_files: Some(1024),
        ..Limits::default()
    };
    let configs = [
        ("no jail", config(None, None)),
        ("a name", config(Some("web"), None)),
        ("a path", config(None, Some("/"))),
        ("a path, 10 mounts and limits", mounted),
    ];
    let mut all = Vec::new();
    for engine in [
        JailEngine::FreebsdJail,
        JailEngine::Bubblewrap(Bubblewrap::default()),
    ] {
        for (name, config) in configs.clone() {
            // bwrap(1) knows no names.
            if config.name.is_some() && engine != JailEngine::FreebsdJail {
                continue;
            }
            let engine = engine.clone();
            all.push(Operation::new(
                format!("{name} ({})", engine.name()),
                move || wrapped(&engine, &config),
            ));
        }
    }
    all
}

/// All that a spawn does here: checks what is asked for, wraps, and lists what is to be done before and after.
fn wrapped(engine: &JailEngine, config: &JailConfig) -> (CommandLine, Vec<JailOp>) {
    let own = "colibri-a1b2c3d4e5f6".parse().unwrap();
    let confinement = config.confinement(&own).unwrap();
    let command = CommandLine::new("/usr/bin/pi", ["--mode", "rpc", "--model", "a-model"]).unwrap();
    let wrapped = jail_wrap(engine, &confinement, None, command.clone()).unwrap();
    let around = confinement.into_op(None, command).map(|op| {
        let mut around = engine.before(&op, &config.limits);
        around.extend(engine.after(&op, &config.limits));
        around
    });
    (wrapped, around.unwrap_or_default())
}
