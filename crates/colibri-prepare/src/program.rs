//! Resolves an agent's program as execvp(3) does, so that a failure is reported with its cause before the spawn.

use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use colibri_sys::regular_file;

use crate::PrepareError;

/// Number of bytes of a program that are read to find its interpreter.
const HEAD_BYTES: u64 = 4096;

/// Mapping from paths that the agent sees to files of the host.
pub(crate) struct ProgramView<'a> {
    /// Returns the host path of a path in the agent's view; `None` if nothing exists there.
    pub(crate) find: &'a dyn Fn(&Path) -> Option<PathBuf>,
    /// Returns why the confinement masks a path of the host from the agent; `None` if it does not.
    pub(crate) masked: &'a dyn Fn(&Path) -> Option<Masked>,
    /// Name of the view for messages: `on this host`, `under /srv/agent`.
    pub(crate) location: &'a str,
    /// Whether the program runs as the user of this process, so that this user's permissions apply.
    pub(crate) as_self: bool,
}

/// A path of the host that a confinement masks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Masked {
    /// The masked directory, and why it is masked.
    pub(crate) cause: String,
    /// How to make the path visible.
    pub(crate) hint: String,
    /// Whether the path exists on the host.
    pub(crate) exists: bool,
}

enum Candidate {
    Executable,
    /// It exists and cannot be executed: why, and what to do.
    Unusable(String),
    Masked(Masked),
    Absent,
}

/// Checks that `program` can be executed, by path or in each directory of `search` (the value of `PATH`).
///
/// # Errors
/// [`PrepareError::ProgramNotFound`] and [`PrepareError::ProgramNotExecutable`].
pub(crate) fn check(
    program: &str,
    search: &str,
    view: &ProgramView<'_>,
) -> Result<(), PrepareError> {
    let by_path = program.contains('/');
    let candidates: Vec<PathBuf> = match by_path {
        true => vec![PathBuf::from(program)],
        false => search
            .split(':')
            .map(|directory| Path::new(directory).join(program))
            .collect(),
    };
    let mut unusable = None;
    let mut masked = None;
    for candidate in &candidates {
        match view.candidate(candidate) {
            Candidate::Executable => return Ok(()),
            Candidate::Unusable(problem) => drop(unusable.get_or_insert(problem)),
            Candidate::Masked(found) if by_path || found.exists => {
                masked.get_or_insert(found);
            }
            Candidate::Masked(_) | Candidate::Absent => {}
        }
    }
    let program = program.to_owned();
    if let Some(problem) = unusable {
        return Err(PrepareError::ProgramNotExecutable { program, problem });
    }
    let place = match by_path {
        true => view.location.to_owned(),
        false => format!("{} in PATH {search}", view.location),
    };
    let (place, hint) = match masked {
        Some(masked) => (format!("{place}: {}", masked.cause), masked.hint),
        None => (place, "pass the path of an executable file".to_owned()),
    };
    Err(PrepareError::ProgramNotFound {
        program,
        place,
        hint,
    })
}

impl ProgramView<'_> {
    fn candidate(&self, path: &Path) -> Candidate {
        let Some(found) = (self.find)(path) else {
            return (self.masked)(path).map_or(Candidate::Absent, Candidate::Masked);
        };
        let Ok(data) = found.metadata() else {
            return Candidate::Absent;
        };
        let shown = path.display();
        let mode = data.permissions().mode() & 0o7777;
        if data.is_dir() {
            return Candidate::Unusable("it is a directory; choose a file".to_owned());
        }
        if !data.is_file() {
            return Candidate::Unusable(
                "it is not a regular file; choose a regular file".to_owned(),
            );
        }
        if mode & 0o111 == 0 {
            return Candidate::Unusable(format!(
                "it has no execute permission (mode {mode:04o}); run: chmod +x {shown}"
            ));
        }
        if self.as_self && access(&found, Access::EXEC_OK).is_err() {
            return Candidate::Unusable(format!(
                "the daemon's user may not execute it (mode {mode:04o}, owner {}); change its mode or owner",
                std::os::unix::fs::MetadataExt::uid(&data)
            ));
        }
        // The interpreter of an unreadable file is unknown here; execve(2) reports it.
        match head(&found).ok().and_then(|head| interpreter(&head)) {
            Some(interpreter) => self.check_interpreter(&interpreter),
            None => Candidate::Executable,
        }
    }

    /// Checks the interpreter of an existing program.
    fn check_interpreter(&self, interpreter: &Interpreter) -> Candidate {
        let Interpreter { kind, path, hint } = interpreter;
        let host_path = Path::new(path);
        if (self.find)(host_path).is_some_and(|found| found.exists()) {
            return Candidate::Executable;
        }
        let (why, hint) = match (self.masked)(host_path).filter(|masked| masked.exists) {
            Some(masked) => (format!(": {}", masked.cause), masked.hint),
            None => (String::new(), (*hint).to_owned()),
        };
        Candidate::Unusable(format!(
            "its {kind} {path:?} does not exist {}{why}; {hint}",
            self.location
        ))
    }
}

/// The file that execve(2) starts instead of the program.
#[derive(Debug, PartialEq, Eq)]
struct Interpreter {
    /// What the file is.
    kind: &'static str,
    path: String,
    /// What to do if it does not exist.
    hint: &'static str,
}

fn head(path: &Path) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let file = regular_file::open(path)?;
    file.take(HEAD_BYTES).read_to_end(&mut head)?;
    Ok(head)
}

/// Returns the interpreter named in the first bytes of a program.
fn interpreter(head: &[u8]) -> Option<Interpreter> {
    let Some(first_line) = head.strip_prefix(b"#!") else {
        return loader(head).map(|path| Interpreter {
            kind: "dynamic loader",
            path,
            hint: "install it, or choose a program built for this system",
        });
    };
    let line = first_line.split(|byte| *byte == b'\n').next()?;
    let mut words = line.split(|byte| matches!(byte, b' ' | b'\t'));
    let path = String::from_utf8(words.find(|word| !word.is_empty())?.to_vec()).ok()?;
    Some(Interpreter {
        kind: "interpreter",
        hint: match path.ends_with('\r') {
            true => "remove the carriage returns at its line ends (dos2unix)",
            false => "install it, or correct the first line of the program",
        },
        path,
    })
}

/// Returns the dynamic loader (PT_INTERP, elf(5)) of a 64-bit little-endian file.
fn loader(head: &[u8]) -> Option<String> {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, bytes: usize| -> Option<u64> {
        let field = head.get(at..at.checked_add(bytes)?)?;
        let number = field.iter().rev();
        Some(number.fold(0, |number, byte| (number << 8) | u64::from(*byte)))
    };
    let at = |offset: u64| usize::try_from(offset).ok();
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for entry in 0..count {
        let header = at(table.checked_add(entry.checked_mul(size)?)?)?;
        if number(header, 4)? == PT_INTERP {
            let start = at(number(header.checked_add(8)?, 8)?)?;
            let length = at(number(header.checked_add(32)?, 8)?)?;
            let text = head.get(start..start.checked_add(length)?)?;
            let text = text.strip_suffix(b"\0").unwrap_or(text);
            return String::from_utf8(text.to_vec()).ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};

    #[test]
    fn unusable_program_is_refused_with_its_cause() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &[u8], mode: u32| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        };
        file("good", b"#!/bin/sh\n", 0o755);
        file("spaced", b"#! \t/bin/sh -e\n", 0o755);
        file("bare", b"echo hi\n", 0o755);
        file("plain", b"#!/bin/sh\n", 0o644);
        file("orphan", b"#!/no/such -x\n", 0o755);
        file("dos", b"#!/bin/sh\r\n", 0o755);
        file("private", b"#!/hidden/sh\n", 0o755);
        fs::create_dir(dir.path().join("directory")).unwrap();
        let view = ProgramView {
            find: &|path| match path.starts_with("/hidden") {
                true => None,
                false => Some(dir.path().join(path)),
            },
            masked: &|path| {
                path.starts_with("/hidden").then(|| Masked {
                    cause: "/hidden is private".to_owned(),
                    hint: "mount it".to_owned(),
                    exists: path.ends_with("sh"),
                })
            },
            location: "HERE",
            as_self: true,
        };
        let mut shown = String::new();
        for program in [
            "./good",
            "./spaced",
            "./bare",
            "./plain",
            "./orphan",
            "./dos",
            "./private",
            "./directory",
            "./absent",
            "/hidden/x",
            "good",
            "plain",
            "absent",
            "sh",
        ] {
            let outcome = check(program, "/hidden:.", &view);
            let text = outcome.map_or_else(|error| error.to_string(), |()| "ok".to_owned());
            shown.push_str(&format!("{program}: {text}\n"));
        }
        insta::assert_snapshot!(shown);
    }

    #[test]
    fn loader_is_found_and_truncated_elf_has_none() {
        let own = head(&std::env::current_exe().unwrap()).unwrap();
        let found = interpreter(&own);
        if cfg!(all(
            target_os = "linux",
            target_endian = "little",
            target_pointer_width = "64"
        )) {
            assert!(
                found
                    .as_ref()
                    .is_some_and(|found| Path::new(&found.path).exists()),
                "{found:?}"
            );
        }
        for length in 0..own.len().min(1024) {
            let mut garbage = own.get(..length).unwrap().to_vec();
            let _ = interpreter(&garbage);
            garbage.iter_mut().skip(8).for_each(|byte| *byte = 0xff);
            assert_eq!(interpreter(&garbage), None, "{length}");
        }
    }
}
