//! Outside of the sandbox: chooses the user, and executes bwrap(1).

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use colibri_jail_core::USER_VARIABLE;
use colibri_sys::descriptors::place_at;
use colibri_sys::kernel;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::lock;
use crate::options::{Run, User};
use crate::paths::open_path;
use crate::{SandboxError, cannot, private_user};

/// Setting of the kernel by which AppArmor permits user namespaces to the programs of its profiles only.
const APPARMOR_SETTING: &str = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns";

/// Becomes the user and executes bwrap.
pub(crate) fn run(options: Run) -> Result<ExitCode, SandboxError> {
    // The numbers of descriptors may exceed the soft limit, which the agent gets.
    let files = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: files.maximum,
        maximum: files.maximum,
    };
    setrlimit(Resource::Nofile, raised).map_err(cannot("raise the limit of open files"))?;
    kernel::new_session_keyring().map_err(cannot("leave the session keyring"))?;
    for directory in &options.locked {
        let failed = || cannot(format!("lock {}", directory.display()));
        // The init process inherits it, and it ends with it.
        std::mem::forget(lock::shared(directory).map_err(failed())?);
    }
    if let Some(number) = options.program {
        open_path(Path::new("/proc/self/exe"))
            .map_err(Into::into)
            .and_then(|program| place_at(program, number))
            .map_err(cannot("open this program"))?;
    }
    if options.user != User::Caller {
        private_user::become_user(options.user, &options.held, options.program)?;
    }
    if kernel::is_host_root() {
        return Err(
            "an agent never runs as root; the daemon gives it a dedicated user, unless this program is started otherwise".into(),
        );
    }
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    let user = format!("{}:{}", uid.as_raw(), gid.as_raw());
    if let Some(numbers) = options.user_tables {
        private_user::open_user_tables(numbers, uid.as_raw())
            .map_err(cannot("prepare the user tables of the agent"))?;
    }
    let path = &options.command.program;
    let sealed;
    let mut command = match names_program_by_path() {
        // The profile of bwrap belongs to its path.
        true => Command::new(path),
        // An interpreter could not open the copy of a script.
        false if is_script(path) => Command::new(path),
        false => {
            sealed =
                sealed_copy(path).map_err(cannot(format!("copy {}", path.to_string_lossy())))?;
            let mut command = Command::new(format!("/proc/self/fd/{}", sealed.as_fd().as_raw_fd()));
            command.arg0(path);
            command
        }
    };
    setrlimit(Resource::Nofile, files).map_err(cannot("restore the limit of open files"))?;
    let error = command
        .args(&options.command.args)
        .env(USER_VARIABLE, user)
        .exec();
    Err(cannot(format!("execute {}", path.to_string_lossy()))(error))
}

/// Returns whether the program must be executed by its path.
fn names_program_by_path() -> bool {
    std::fs::read_to_string(APPARMOR_SETTING).is_ok_and(|value| value.trim() != "0")
}

fn is_script(path: &std::ffi::OsStr) -> bool {
    let mut head = [0; 2];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut head));
    read.is_ok() && head == *b"#!"
}

/// Returns a copy of a program in memory that nothing can change (memfd_create(2)).
fn sealed_copy(path: &std::ffi::OsStr) -> io::Result<std::os::fd::OwnedFd> {
    let mut program = std::fs::File::open(path)?;
    let memory = memfd_create("bwrap", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut copy = std::fs::File::from(memory);
    io::copy(&mut program, &mut copy)?;
    fcntl_add_seals(
        &copy,
        SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
    )?;
    Ok(copy.into())
}
