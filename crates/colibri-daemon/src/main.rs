//! The `colibri-daemon` program, with the privilege backends that come with Colibri.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    colibri_daemon::main(colibri_priv::BackendRegistry::builtin)
}
