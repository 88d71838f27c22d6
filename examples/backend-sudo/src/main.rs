//! A complete colibri-daemon with the additional backend `sudo`: `COLIBRI_JAIL_PRIV_MODE=sudo`.

use std::process::ExitCode;
use std::sync::Arc;

use backend_sudo::Sudo;
use colibri_jail_core::EngineRegistry;
use colibri_priv::BackendRegistry;

fn main() -> ExitCode {
    colibri_daemon::main(EngineRegistry::builtin(), |helper| {
        let mut backends = BackendRegistry::builtin(helper);
        if let Err(error) = backends.register(Arc::new(Sudo)) {
            eprintln!("colibri-daemon-sudo: {error}");
        }
        backends
    })
}
