//! The `colibri-daemon` program, with the engines and privilege backends that come with Colibri.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    colibri_daemon::main(
        colibri_jail_core::EngineRegistry::builtin(),
        colibri_priv::BackendRegistry::builtin,
    )
}
