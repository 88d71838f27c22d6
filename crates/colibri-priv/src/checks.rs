//! Checks of programs and files that a privilege backend depends on. They block while they read the file system.

use std::fs;
use std::path::Path;

use colibri_sys::ownership::Ownership;
use colibri_sys::regular_file::is_executable;
use colibri_types::Finding;

/// Checks that `program` exists and is executable; `fix` is the hint if not.
#[must_use]
pub fn executable(program: &str, fix: &str) -> Finding {
    if is_executable(program.as_ref()) {
        return Finding::ok(format!("{program} is installed"));
    }
    match fs::metadata(program) {
        Ok(_) => Finding::fail(format!("{program} is not an executable file"), fix),
        Err(error) => Finding::fail(format!("{program} cannot be found: {error}"), fix),
    }
}

/// Checks that `path` and every directory above it belongs to root and is writable by root only.
#[must_use]
pub fn writable_by_root_only(path: &Path) -> Finding {
    for ancestor in path.ancestors() {
        let shown = ancestor.display();
        let data = match fs::symlink_metadata(ancestor) {
            Err(error) => {
                let fix = "install it as root; start from the sample in the helper's directory, see docs/helper-protocol.md";
                return Finding::fail(format!("{shown} cannot be found: {error}"), fix);
            }
            Ok(data) => data,
        };
        let ownership = Ownership::from(&data);
        if ownership.uid != 0 {
            let what = format!("{shown} belongs to uid {}, not to root", ownership.uid);
            return Finding::fail(what, format!("as root: chown root {shown}"));
        }
        let is_exposed = match data.is_dir() {
            true => ownership.entries_are_replaceable(),
            false => ownership.is_writable_by_others(),
        };
        if is_exposed {
            let what = format!("{shown} is writable by other users (mode {ownership})");
            return Finding::fail(what, format!("as root: chmod go-w {shown}"));
        }
    }
    Finding::ok(format!(
        "{} belongs to root and only root can write it",
        path.display()
    ))
}

/// Checks that `program` is setuid root and writable by root only.
#[must_use]
pub fn setuid_root(program: &Path) -> Finding {
    let shown = program.display();
    let fix = format!("as root: chown root {shown} && chmod 4755 {shown}");
    match fs::metadata(program).map(|data| Ownership::from(&data)) {
        Err(error) => Finding::fail(
            format!("{shown} cannot be found: {error}"),
            "install colibri-jail-helper",
        ),
        Ok(ownership) if ownership.uid != 0 || ownership.mode & 0o4000 == 0 => {
            Finding::fail(format!("{shown} is not setuid root"), fix)
        }
        Ok(ownership) if ownership.is_writable_by_others() => {
            Finding::fail(format!("{shown} is writable by other users"), fix)
        }
        Ok(_) => Finding::ok(format!("{shown} is setuid root")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use colibri_types::FindingStatus;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn program_checks_report_missing_and_unusable() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tool");
        fs::write(&file, "").unwrap();
        for (mode, status) in [(0o644, FindingStatus::Fail), (0o755, FindingStatus::Ok)] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(executable(file.to_str().unwrap(), "fix").status, status);
        }
        let absent = executable("/absent/tool", "install it");
        assert_eq!(
            (absent.status, absent.fix.as_deref()),
            (FindingStatus::Fail, Some("install it"))
        );
        // Depending on the test's user: not owned by root, not setuid, or writable by others.
        for mode in [0o755, 0o4777] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(setuid_root(&file).status, FindingStatus::Fail, "{mode:o}");
        }
    }
}
