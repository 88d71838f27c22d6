//! Finds a program on the host, and what a sandbox must show of the host so that it runs there.

use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use colibri_jail_core::MINIMAL_VIEW;
use colibri_sys::regular_file::{self, is_executable};

/// Directories in the home that are searched after those of `PATH`.
const IN_HOME: &[&str] = &[
    ".local/bin",
    ".npm-global/bin",
    ".bun/bin",
    ".opencode/bin",
    ".claude/local",
    ".cargo/bin",
    "go/bin",
    "bin",
];
/// Maximum size of a package.json, in bytes.
const MAX_PACKAGE_BYTES: u64 = 1 << 20;
/// Maximum length of a first line, in bytes.
const MAX_LINE: u64 = 512;
/// Maximum size of a `pyvenv.cfg`, in bytes.
const MAX_CONFIG: u64 = 16 << 10;

/// A program on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct InstalledProgram {
    /// Its real path.
    pub path: PathBuf,
    /// Directories and files that a sandbox must show besides those that it always shows.
    pub mounts: Vec<PathBuf>,
    /// Directories for `PATH` inside.
    pub directories: Vec<PathBuf>,
}

/// Searches a program in the directories of `search`, the value of `PATH`, and in usual places of `home`.
pub(crate) fn find(program: &str, search: &str, home: Option<&Path>) -> Option<InstalledProgram> {
    let in_home = home
        .into_iter()
        .flat_map(|home| IN_HOME.iter().map(|path| home.join(path)));
    let directories: Vec<PathBuf> = match program.contains('/') {
        true => vec![PathBuf::new()],
        false => search
            .split(':')
            .filter(|directory| directory.starts_with('/'))
            .map(PathBuf::from)
            .chain(in_home)
            .collect(),
    };
    let found = directories
        .iter()
        .map(|directory| directory.join(program))
        .find(|path| is_executable(path))?;
    let path = found.canonicalize().ok()?;
    let mut installed = InstalledProgram {
        path: path.clone(),
        mounts: Vec::new(),
        directories: Vec::new(),
    };
    installed.show(&path, home);
    // The interpreter beside the program is the one it was installed with.
    let beside = found.parent().map(Path::to_owned);
    let directories: Vec<PathBuf> = beside.into_iter().chain(directories).collect();
    if let Some(interpreter) = interpreter(&path, &directories) {
        installed.show_interpreter(&interpreter, home);
    }
    Some(installed)
}

impl InstalledProgram {
    /// Returns the version, as the package says that contains the program; `None` if none is found.
    #[must_use]
    pub fn version(&self) -> Option<String> {
        self.npm_version().or_else(|| self.python_version())
    }

    fn npm_version(&self) -> Option<String> {
        #[derive(serde::Deserialize)]
        struct Package {
            version: String,
        }
        let inside = |path: &&Path| {
            path.parent().is_some_and(|parent| {
                parent.ends_with("node_modules")
                    || parent
                        .parent()
                        .is_some_and(|scope| scope.ends_with("node_modules"))
            })
        };
        let package = self
            .path
            .ancestors()
            .filter(inside)
            .find(|path| path.join("package.json").is_file())?;
        let text = regular_file::read(&package.join("package.json"), MAX_PACKAGE_BYTES).ok()?;
        serde_json::from_slice::<Package>(&text)
            .ok()
            .map(|package| package.version)
    }

    /// Returns the version in the name of a directory `NAME-VERSION.dist-info` of the environment.
    fn python_version(&self) -> Option<String> {
        let environment = python_environment(&self.path)?;
        let name = self.path.file_name()?.to_str()?;
        let libraries = std::fs::read_dir(environment.join("lib")).ok()?.flatten();
        let packages =
            libraries.flat_map(|entry| std::fs::read_dir(entry.path().join("site-packages")));
        packages.flatten().flatten().find_map(|entry| {
            let package = entry.file_name().into_string().ok()?;
            let (package, version) = package.strip_suffix(".dist-info")?.rsplit_once('-')?;
            let is_own = package == name || package.strip_prefix(name)?.starts_with('_');
            is_own.then(|| version.to_owned())
        })
    }

    /// Adds the mount that shows a real path. The files that lead to it may be those of an agent: the home of the user and the
    /// directories above it are never shown as a whole.
    fn show(&mut self, path: &Path, home: Option<&Path>) {
        let real_home = home.and_then(|home| home.canonicalize().ok());
        let contains_home = |root: &PathBuf| {
            let homes = [home, real_home.as_deref()];
            homes
                .into_iter()
                .flatten()
                .any(|home| home.starts_with(root))
        };
        if let Some(root) = mount_root(path).filter(|root| !contains_home(root))
            && !self.mounts.iter().any(|mount| root.starts_with(mount))
        {
            self.mounts.retain(|mount| !mount.starts_with(&root));
            self.mounts.push(root);
        }
    }

    fn show_interpreter(&mut self, path: &Path, home: Option<&Path>) {
        let Ok(real) = path.canonicalize() else {
            return;
        };
        // A first line may name any file, such as a key.
        if !is_executable(&real) {
            return;
        }
        self.show(&real, home);
        for directory in [path.parent(), real.parent()].into_iter().flatten() {
            let directory = directory.to_owned();
            if !self.directories.contains(&directory) {
                self.directories.push(directory);
            }
        }
        if let Some(environment) = python_environment(path) {
            self.show(&environment, home);
        }
        if let Some(base) = python_base(path) {
            self.show(&base, home);
        }
    }
}

/// Returns the directory or file that a sandbox must show for a real path; `None` if every sandbox shows it.
fn mount_root(path: &Path) -> Option<PathBuf> {
    if MINIMAL_VIEW.iter().any(|shown| path.starts_with(shown)) {
        return None;
    }
    // Packages use others of the same tree.
    let mut root = PathBuf::new();
    for component in path.components() {
        root.push(component);
        if component == Component::Normal("node_modules".as_ref()) {
            return Some(root);
        }
    }
    Some(python_environment(path).unwrap_or_else(|| path.to_owned()))
}

/// Returns the virtual environment of Python that a program in its `bin` belongs to (the module venv).
fn python_environment(path: &Path) -> Option<PathBuf> {
    let environment = path.parent()?.parent()?;
    environment
        .join("pyvenv.cfg")
        .is_file()
        .then(|| environment.to_owned())
}

/// Returns the installation of Python on which a virtual environment is based.
fn python_base(path: &Path) -> Option<PathBuf> {
    let config = python_environment(path)?.join("pyvenv.cfg");
    let mut text = String::new();
    let file = File::open(config).ok()?;
    file.take(MAX_CONFIG).read_to_string(&mut text).ok()?;
    let home = text
        .lines()
        .find_map(|line| line.strip_prefix("home")?.trim_start().strip_prefix('='))?;
    // `home` is the directory of the program: PREFIX/bin.
    let programs = Path::new(home.trim()).canonicalize().ok()?;
    let prefix = programs.parent()?.to_owned();
    // An agent that can write the file could name any directory.
    is_python(&programs, &prefix).then_some(prefix)
}

/// Reports whether a directory is an installation of Python with its standard library, and not one, like `~/.local`, that contains
/// links to one or packages for one.
fn is_python(programs: &Path, prefix: &Path) -> bool {
    let names = |directory: &Path| {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.path())
            .filter(|path| {
                let name = path.file_name().and_then(|name| name.to_str());
                name.is_some_and(|name| name.starts_with("python"))
            })
            .collect::<Vec<_>>()
    };
    let is_inside = |path: PathBuf| {
        let real = path.canonicalize().ok();
        real.is_some_and(|real| real.starts_with(prefix) && is_executable(&real))
    };
    names(programs).into_iter().any(is_inside)
        && names(&prefix.join("lib"))
            .iter()
            .any(|library| library.join("os.py").is_file())
}

/// Returns the interpreter of a script, as execve(2) and env(1) find it.
fn interpreter(script: &Path, directories: &[PathBuf]) -> Option<PathBuf> {
    let mut head = Vec::new();
    File::open(script)
        .ok()?
        .take(MAX_LINE)
        .read_to_end(&mut head)
        .ok()?;
    let line = head
        .strip_prefix(b"#!")?
        .split(|byte| *byte == b'\n')
        .next()?;
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split_whitespace();
    let program = words.next()?;
    if !program.ends_with("/env") {
        return Some(PathBuf::from(program));
    }
    let name = words.find(|word| !word.starts_with('-') && !word.contains('='))?;
    directories
        .iter()
        .map(|directory| directory.join(name))
        .find(|path| is_executable(path))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    pub(crate) fn executable(path: &Path, content: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn temporary() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        (dir, path)
    }

    #[test]
    fn npm_package_is_shown_with_its_tree_and_node() {
        let (_dir, root) = temporary();
        let tree = root.join("nvm/v22/lib/node_modules");
        executable(
            &tree.join("@x/agent/bundle/agent.js"),
            "#!/usr/bin/env -S node --flag\n",
        );
        executable(&root.join("nvm/v22/bin/node"), "");
        symlink(
            "../lib/node_modules/@x/agent/bundle/agent.js",
            root.join("nvm/v22/bin/agent"),
        )
        .unwrap();
        let search = format!("/nowhere:{}", root.join("nvm/v22/bin").display());
        let found = find("agent", &search, None).unwrap();
        assert_eq!(found.path, tree.join("@x/agent/bundle/agent.js"));
        assert_eq!(found.mounts, [tree, root.join("nvm/v22/bin/node")]);
        assert_eq!(found.directories, [root.join("nvm/v22/bin")]);
    }

    #[test]
    fn files_of_an_agent_show_no_directory_of_the_user() {
        let (_dir, home) = temporary();
        let project = home.join("project");
        executable(&project.join("env/bin/python"), "");
        let secret = home.join(".ssh/key");
        fs::create_dir_all(secret.parent().unwrap()).unwrap();
        fs::create_dir_all(home.join(".local/bin")).unwrap();
        fs::create_dir_all(home.join(".local/lib/python3.12")).unwrap();
        fs::write(&secret, "s3cret").unwrap();
        let elsewhere = home.join("real/python3");
        executable(&elsewhere, "");
        symlink(&elsewhere, home.join(".local/bin/python3")).unwrap();
        // A program of the user, whose packages pip has put beside it.
        executable(&home.join(".local/bin/python3.12"), "");
        let python = format!("#!{}\n", project.join("env/bin/python").display());
        for (base, first_line) in [
            (project.clone(), python.clone()),
            (home.join(".ssh"), python.clone()),
            (home.join(".local/bin"), python.clone()),
            (PathBuf::from("/"), python),
            (project.clone(), format!("#!{}\n", secret.display())),
        ] {
            let config = format!("home = {}\n", base.display());
            fs::write(project.join("env/pyvenv.cfg"), config).unwrap();
            executable(&project.join("agent"), &first_line);
            let search = project.display().to_string();
            let found = find("agent", &search, Some(&home)).unwrap();
            let in_project = |mount: &PathBuf| mount.starts_with(&project);
            assert!(found.mounts.iter().all(in_project), "{base:?}: {found:?}");
        }
        // A virtual environment in the home itself.
        fs::write(home.join("pyvenv.cfg"), "").unwrap();
        executable(&home.join("bin/agent"), "");
        let search = home.join("bin").display().to_string();
        assert_eq!(
            find("agent", &search, Some(&home)).unwrap().mounts,
            [] as [PathBuf; 0]
        );
    }

    #[test]
    fn python_tool_is_shown_with_its_environment_and_base() {
        let (_dir, root) = temporary();
        let venv = root.join("tools/aider");
        executable(&root.join("python/bin/python3.12"), "");
        fs::create_dir_all(root.join("python/lib/python3.12")).unwrap();
        fs::write(root.join("python/lib/python3.12/os.py"), "").unwrap();
        fs::create_dir_all(venv.join("bin")).unwrap();
        symlink(root.join("python/bin/python3.12"), venv.join("bin/python")).unwrap();
        fs::write(
            venv.join("pyvenv.cfg"),
            format!("home = {}\n", root.join("python/bin").display()),
        )
        .unwrap();
        let script = format!("#!{}\n", venv.join("bin/python").display());
        executable(&venv.join("bin/aider"), &script);
        let home = root.join("home");
        fs::create_dir_all(home.join(".local/bin")).unwrap();
        symlink(venv.join("bin/aider"), home.join(".local/bin/aider")).unwrap();
        let found = find("aider", "/nowhere", Some(&home)).unwrap();
        assert_eq!(found.path, venv.join("bin/aider"));
        assert_eq!(found.mounts, [venv, root.join("python")]);
    }

    #[test]
    fn single_binary_is_shown_alone() {
        let (_dir, root) = temporary();
        executable(&root.join("versions/1.0"), "\x7fELF");
        fs::create_dir_all(root.join("bin")).unwrap();
        symlink(root.join("versions/1.0"), root.join("bin/agent")).unwrap();
        let found = find("agent", root.join("bin").to_str().unwrap(), None).unwrap();
        assert_eq!(found.mounts, [root.join("versions/1.0")]);
    }

    #[test]
    fn program_of_the_system_needs_no_mount() {
        let found = find("sh", "/usr/bin:/bin", None).unwrap();
        assert!(found.mounts.is_empty(), "{found:?}");
        assert_eq!(find("no-such-agent", "/usr/bin:relative", None), None);
    }
}
