//! Users of an unpacked system: empty passwords are locked, and the user of agents is created.
//!
//! On FreeBSD, pw(8) of the host changes the user database. It follows symbolic links inside its root directory, and an
//! unpacked system may contain links to the host: [`check_paths`] refuses them first.

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::str::FromStr;

use rustix::fs::FileType;

use crate::archive_path::ArchivePath;
use crate::command::ExternalCommand;
use crate::error::TemplateError;
use crate::tree::{Attributes, StoredFile, Tree};

/// The program pw(8).
const PW: &str = "/usr/sbin/pw";
/// The program pwd_mkdb(8).
const PWD_MKDB: &str = "/usr/sbin/pwd_mkdb";
/// Numbers of new users, as pw(8) uses them (pw.conf(5), minuid and maxuid).
const USER_IDS: std::ops::RangeInclusive<u32> = 1000..=32000;
/// Maximum length of a user name, in bytes (FreeBSD's MAXLOGNAME without the terminator).
const MAX_NAME: usize = 32;
/// Directories that pw(8) reads or writes below its root directory.
const PW_DIRECTORIES: [&[&str]; 7] = [
    &["etc"],
    &["home"],
    &["usr"],
    &["usr", "share"],
    &["usr", "share", "skel"],
    &["var"],
    &["var", "mail"],
];

/// The name of a user: a lower-case letter or `_`, then lower-case letters, digits, `_` and `-`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentUserName(String);

impl FromStr for AgentUserName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let begins = text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
        let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c);
        match begins && text.chars().all(is_allowed) && text.len() <= MAX_NAME {
            true => Ok(Self(text.to_owned())),
            false => Err(format!(
                "cannot use user name {text:?}: give at most {MAX_NAME} of a-z, 0-9, _ and -, beginning with a letter or _"
            )),
        }
    }
}

impl fmt::Display for AgentUserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn path(names: &[&str]) -> ArchivePath {
    ArchivePath::of_names(names)
}

fn etc(name: &str) -> ArchivePath {
    path(&["etc", name])
}

/// Locks the accounts that have an empty password, and creates the user of agents unless it exists. Returns the names of the
/// locked accounts. `root` is the path of the tree.
pub(crate) fn prepare(
    tree: &Tree,
    root: &Path,
    user: Option<&AgentUserName>,
) -> Result<Vec<String>, TemplateError> {
    let Some(master) = tree.read(&etc("master.passwd"))? else {
        return prepare_files(tree, user);
    };
    if !cfg!(target_os = "freebsd") {
        return Err(TemplateError::prepare(
            "it is a FreeBSD system, whose user database only pw(8) can change; run the command on FreeBSD",
        ));
    }
    check_paths(tree, user)?;
    check_user(&master.content, user)?;
    // The archive may lack the databases, which pw(8) updates, or contain users in them that master.passwd does not have.
    databases_command(root)?.run()?;
    let open = accounts_without_password(&master.content);
    for name in &open {
        lock_command(root, name)?.run()?;
    }
    if let Some(user) = user.filter(|user| !has_user(&master.content, &user.0)) {
        if tree.kind(&path(&["home", &user.0]))?.is_some() {
            return Err(TemplateError::prepare(format!(
                "it has a directory /home/{user}, but no user {user}; give another --user"
            )));
        }
        create_command(root, user)?.run()?;
    }
    // Confirms the result instead of the exit status of another program.
    let written = tree.read(&etc("master.passwd"))?;
    let written = written.map(|file| file.content).unwrap_or_default();
    // pw(8) puts a new user into the group of its name, which the archive may contain.
    check_user(&written, user)?;
    let has_user = user.is_none_or(|user| has_user(&written, &user.0));
    match accounts_without_password(&written).is_empty() && has_user {
        true => Ok(open),
        false => Err(TemplateError::prepare(
            "pw(8) reported success, but /etc/master.passwd is unchanged; report this as a bug",
        )),
    }
}

/// Refuses links and special files where pw(8) and pwd_mkdb(8) read or write.
fn check_paths(tree: &Tree, user: Option<&AgentUserName>) -> Result<(), TemplateError> {
    let refused = |path: &ArchivePath, expected: &str| {
        TemplateError::prepare(format!(
            "{path} is not {expected}, and pw(8) could follow it out of the template; use another archive"
        ))
    };
    for names in PW_DIRECTORIES {
        let path = path(names);
        // `kind` fails if a directory above it is a link.
        if !matches!(tree.kind(&path)?, None | Some(FileType::Directory)) {
            return Err(refused(&path, "a directory"));
        }
    }
    for name in tree.names(&path(&["etc"]))? {
        let shown = String::from_utf8_lossy(name.as_bytes()).into_owned();
        let is_database = [
            "passwd",
            "master.passwd",
            "group",
            "pwd.db",
            "spwd.db",
            "pw.",
            "login.conf",
        ]
        .iter()
        .any(|prefix| shown.starts_with(prefix));
        let file = etc("passwd").with_name(name.as_bytes());
        if is_database && tree.kind(&file)? != Some(FileType::RegularFile) {
            return Err(refused(&file, "a regular file"));
        }
    }
    if let Some(user) = user {
        let mail = path(&["var", "mail", &user.0]);
        if tree
            .kind(&mail)?
            .is_some_and(|kind| kind != FileType::RegularFile)
        {
            return Err(refused(&mail, "a regular file"));
        }
    }
    Ok(())
}

/// Returns the command that builds passwd, pwd.db and spwd.db from master.passwd.
fn databases_command(root: &Path) -> Result<ExternalCommand, TemplateError> {
    let directory = format!("{}/etc", utf8(root)?);
    let table = format!("{directory}/master.passwd");
    Ok(ExternalCommand::new(
        PWD_MKDB,
        &["-p", "-d", &directory, &table],
    ))
}

/// Returns the command that sets the password of an account to `*`, which no password matches (passwd(5)).
fn lock_command(root: &Path, name: &str) -> Result<ExternalCommand, TemplateError> {
    if name.starts_with('-') || name.chars().any(char::is_control) {
        return Err(TemplateError::prepare(format!(
            "the account {name:?} has an empty password and a name that pw(8) does not accept; use another archive"
        )));
    }
    pw(root, &["usermod", "-n", name, "-C", "/dev/null", "-h", "-"])
}

/// Returns the command that creates the user with a home directory and without a password. The archive's pw.conf(5), which
/// could name a log file of the host, is not read.
fn create_command(root: &Path, user: &AgentUserName) -> Result<ExternalCommand, TemplateError> {
    let home = format!("/home/{user}");
    let args = [
        "useradd",
        "-n",
        &user.0,
        "-C",
        "/dev/null",
        "-c",
        "Colibri agents",
        "-d",
        &home,
        "-m",
        "-s",
        "/bin/sh",
        "-h",
        "-",
    ];
    pw(root, &args)
}

fn pw(root: &Path, args: &[&str]) -> Result<ExternalCommand, TemplateError> {
    let root = utf8(root)?;
    Ok(ExternalCommand::new(PW, &[&["-R", root], args].concat()))
}

fn utf8(path: &Path) -> Result<&str, TemplateError> {
    path.to_str()
        .ok_or_else(|| TemplateError::prepare("its path is not UTF-8; give another directory"))
}

/// Returns the accounts of a passwd(5) or shadow(5) table that need no password.
fn accounts_without_password(table: &[u8]) -> Vec<String> {
    let table = String::from_utf8_lossy(table);
    let open = table.lines().filter_map(|line| {
        let (name, rest) = line.split_once(':')?;
        // `+` and `-` are entries of NIS, `#` a comment.
        let is_account = !name.is_empty() && !name.starts_with(['+', '-', '#']);
        (is_account && rest.starts_with(':')).then(|| name.to_owned())
    });
    open.collect()
}

fn has_user(table: &[u8], name: &str) -> bool {
    let table = String::from_utf8_lossy(table);
    table
        .lines()
        .any(|line| line.split(':').next() == Some(name))
}

/// Refuses a passwd(5) table in which the user of agents has the number 0 or the group 0, or none that is valid.
fn check_user(table: &[u8], user: Option<&AgentUserName>) -> Result<(), TemplateError> {
    let Some(user) = user else {
        return Ok(());
    };
    let table = String::from_utf8_lossy(table);
    for line in table.lines() {
        let mut fields = line.split(':');
        if fields.next() != Some(&user.0) {
            continue;
        }
        let is_ordinary = |field: Option<&str>| {
            let number = field.and_then(|field| field.parse::<u32>().ok());
            number.is_some_and(|number| number != 0)
        };
        // The field before them is the password.
        let (uid, gid) = (fields.nth(1), fields.next());
        if !is_ordinary(uid) || !is_ordinary(gid) {
            return Err(TemplateError::prepare(format!(
                "its user {user} has uid {:?} and gid {:?}, but agents must not run as root or in its group; give another --user",
                uid.unwrap_or_default(),
                gid.unwrap_or_default()
            )));
        }
    }
    Ok(())
}

/// Does what [`prepare`] promises in a system whose user database consists of text files only, as on Linux.
fn prepare_files(tree: &Tree, user: Option<&AgentUserName>) -> Result<Vec<String>, TemplateError> {
    let mut locked = Vec::new();
    for name in ["passwd", "shadow"] {
        let Some(file) = tree.read(&etc(name))? else {
            continue;
        };
        let open = accounts_without_password(&file.content);
        if !open.is_empty() {
            tree.write(&etc(name), &file.attributes, &lock_accounts(&file.content))?;
            locked.extend(open);
        }
    }
    if let Some(user) = user {
        add_to_files(tree, user)?;
    }
    Ok(locked)
}

/// Returns the table with `*` in place of empty passwords.
fn lock_accounts(table: &[u8]) -> Vec<u8> {
    let open = accounts_without_password(table);
    let mut out = Vec::new();
    for line in table.split_inclusive(|byte| *byte == b'\n') {
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(0);
        let (name, rest) = line.split_at(colon);
        out.extend(name);
        if rest.starts_with(b"::") && open.iter().any(|open| open.as_bytes() == name) {
            out.extend(b":*");
            out.extend(&rest[1..]);
        } else {
            out.extend(rest);
        }
    }
    out
}

fn add_to_files(tree: &Tree, user: &AgentUserName) -> Result<(), TemplateError> {
    let new_file = |mode| StoredFile {
        content: Vec::new(),
        attributes: attributes(mode, 0),
    };
    let mut passwd = tree
        .read(&etc("passwd"))?
        .unwrap_or_else(|| new_file(0o644));
    if has_user(&passwd.content, &user.0) {
        return check_user(&passwd.content, Some(user));
    }
    let mut group = tree.read(&etc("group"))?.unwrap_or_else(|| new_file(0o644));
    let numbers: Vec<u32> = [&passwd, &group]
        .iter()
        .flat_map(|file| third_fields(&file.content))
        .collect();
    let id = USER_IDS.into_iter().find(|id| !numbers.contains(id));
    let id = id.ok_or_else(|| TemplateError::prepare("it has no free user id; pass --no-user"))?;
    let home = path(&["home", &user.0]);
    if tree.kind(&home)?.is_some() {
        return Err(TemplateError::prepare(format!(
            "it has a directory {home}, but no user {user}; give another --user"
        )));
    }
    append(
        &mut passwd,
        &format!("{user}:x:{id}:{id}:Colibri agents:{home}:/bin/sh"),
    );
    append(&mut group, &format!("{user}:x:{id}:"));
    tree.write(&etc("group"), &group.attributes, &group.content)?;
    if let Some(mut shadow) = tree.read(&etc("shadow"))? {
        append(&mut shadow, &format!("{user}:*:::::::"));
        tree.write(&etc("shadow"), &shadow.attributes, &shadow.content)?;
    }
    tree.write(&etc("passwd"), &passwd.attributes, &passwd.content)?;
    tree.directory(&home, &attributes(0o755, id))
}

fn attributes(mode: u32, owner: u32) -> Attributes {
    let is_root = rustix::process::geteuid().is_root();
    Attributes {
        mode,
        owner: is_root.then_some((owner, owner)),
        mtime: None,
    }
}

fn third_fields(table: &[u8]) -> Vec<u32> {
    let table = String::from_utf8_lossy(table);
    let numbers = table
        .lines()
        .filter_map(|line| line.split(':').nth(2)?.parse().ok());
    numbers.collect()
}

fn append(file: &mut StoredFile, line: &str) {
    if !file.content.is_empty() && !file.content.ends_with(b"\n") {
        file.content.push(b'\n');
    }
    file.content.extend(line.as_bytes());
    file.content.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_of_pw_match_snapshot() {
        let root = Path::new("/jails/.a b.colibri-init.7/root");
        let user = "agent".parse().unwrap();
        let commands = [
            databases_command(root).unwrap(),
            lock_command(root, "root").unwrap(),
            create_command(root, &user).unwrap(),
        ];
        let args = commands.map(|command| command.args.join("|"));
        insta::assert_snapshot!(args.join("\n"), @"
        -p|-d|/jails/.a b.colibri-init.7/root/etc|/jails/.a b.colibri-init.7/root/etc/master.passwd
        -R|/jails/.a b.colibri-init.7/root|usermod|-n|root|-C|/dev/null|-h|-
        -R|/jails/.a b.colibri-init.7/root|useradd|-n|agent|-C|/dev/null|-c|Colibri agents|-d|/home/agent|-m|-s|/bin/sh|-h|-
        ");
        assert!(lock_command(root, "-R").is_err());
    }

    #[test]
    fn only_empty_passwords_are_locked() {
        let table = b"# :: comment\nroot::0:0::0:0:Charlie &:/root:/bin/sh\ntoor:*:0:0::0:0::/root:\n+:::::::::\n\xff::1:\nlast::5:";
        assert_eq!(
            lock_accounts(table),
            b"# :: comment\nroot:*:0:0::0:0:Charlie &:/root:/bin/sh\ntoor:*:0:0::0:0::/root:\n+:::::::::\n\xff::1:\nlast:*:5:"
        );
        assert_eq!(
            accounts_without_password(table),
            ["root", "\u{fffd}", "last"]
        );
    }

    #[test]
    fn user_names_are_those_of_pw() {
        for good in ["agent", "_agent", "a-1"] {
            good.parse::<AgentUserName>().unwrap();
        }
        for bad in [
            "",
            "-agent",
            "1a",
            "Agent",
            "a b",
            "a:b",
            "a/b",
            "..",
            &"a".repeat(33),
        ] {
            assert!(bad.parse::<AgentUserName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn user_with_number_of_root_is_refused() {
        let user: AgentUserName = "agent".parse().unwrap();
        let check = |numbers: &str| {
            let table =
                format!("root:*:0:0::0:0::/root:/bin/sh\nagent:*:{numbers}::0:0::/:/bin/sh\n");
            check_user(table.as_bytes(), Some(&user)).map_err(|error| error.to_string())
        };
        check("1001:1001").unwrap();
        assert_eq!(
            check("0:1001").unwrap_err(),
            "cannot prepare the template: its user agent has uid \"0\" and gid \"1001\", but agents must not run as root or in its group; give another --user"
        );
        for numbers in [
            "1001:0",
            "00:1",
            "+0:1",
            "-0:1",
            " 0:1",
            "x:1",
            ":",
            "4294967296:1",
            "",
        ] {
            assert!(check(numbers).is_err(), "{numbers}");
        }
        let twice = b"agent:*:1001:1001::0:0::/:/bin/sh\nagent:*:0:0::0:0::/:/bin/sh\n";
        assert!(check_user(twice, Some(&user)).is_err());
        assert!(check_user(twice, None).is_ok());
    }

    fn tree(directory: &Path) -> Tree {
        Tree::new(std::fs::File::open(directory).unwrap().into())
    }

    #[test]
    fn link_where_pw_writes_is_refused() {
        let user: AgentUserName = "agent".parse().unwrap();
        for (directories, link) in [
            (&[][..], "etc"),
            (&["etc"], "home"),
            (&["etc", "var"], "var/mail"),
            (&["etc", "usr"], "usr/share"),
            (&["etc"], "etc/master.passwd"),
            (&["etc"], "etc/pwd.db.tmp"),
            (&["etc"], "etc/group.new"),
            (&["etc", "var", "var/mail"], "var/mail/agent"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            for directory in directories {
                std::fs::create_dir(dir.path().join(directory)).unwrap();
            }
            check_paths(&tree(dir.path()), Some(&user)).unwrap();
            std::os::unix::fs::symlink("/etc", dir.path().join(link)).unwrap();
            let error = check_paths(&tree(dir.path()), Some(&user)).unwrap_err();
            let text = error.to_string();
            assert!(
                text.contains("follow it out") || text.contains("not a directory"),
                "{text}"
            );
        }
    }
}
