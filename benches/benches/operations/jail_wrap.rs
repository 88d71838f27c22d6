//! Command lines of both engines.

use std::sync::Arc;

use colibri_jail_core::{
    Bubblewrap, CommandLine, FreebsdJail, JailConfig, JailEngine, JailOp, Limits, MountConfig,
    Size, jail_wrap,
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
    let engines: [Arc<dyn JailEngine>; 2] = [
        Arc::new(FreebsdJail::default()),
        Arc::new(Bubblewrap::default()),
    ];
    for engine in engines {
        for (name, config) in configs.clone() {
            // bwrap(1) has no persistent jails.
            if config.name.is_some() && engine.name() == Bubblewrap::NAME {
                continue;
            }
            let engine = engine.clone();
            all.push(Operation::new(
                format!("{name} ({})", engine.name()),
                move || wrap(&*engine, &config),
            ));
        }
    }
    all
}

/// Does the work of `colibri-jail-core` for one spawn: validates the configuration, wraps the command, and returns the
/// commands before and after a run.
fn wrap(engine: &dyn JailEngine, config: &JailConfig) -> (CommandLine, Vec<JailOp>) {
    let ephemeral_name = "colibri-a1b2c3d4e5f6".parse().unwrap();
    let confinement = config.confinement(&ephemeral_name).unwrap();
    let command = CommandLine::new("/usr/bin/pi", ["--mode", "rpc", "--model", "a-model"]).unwrap();
    let wrapped = jail_wrap(engine, &confinement, None, command.clone()).unwrap();
    let commands = confinement.into_op(None, command).map(|op| {
        let mut commands = engine.pre_run(&op, &config.limits).unwrap();
        commands.extend(engine.post_run(&op, &config.limits).unwrap());
        commands
    });
    (wrapped, commands.unwrap_or_default())
}
