//! Requests that the setuid helper must refuse, sent by unprivileged users to the real program. A table lists the
//! attacks.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Output;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use colibri_tests::helper::{AGENT, CALLER, Helper, OTHER, POLICY, PREFIX, TREE, UNLISTED, uid};
use colibri_tests::{create_fifo, eventually, text};

/// An attack: its description, the user that runs it, and its shell script, in which `$H` is the path of the helper.
type Attack = (&'static str, &'static str, &'static str);

/// The options of a `create` request that the policy allows.
const CREATE: &str = "--jail colibri-t1 --path / --ip4 disable";

const ATTACKS: &[Attack] = &[
    // Callers.
    ("unlisted user: check", UNLISTED, "$H check"),
    (
        "unlisted user: create",
        UNLISTED,
        "$H create --jail colibri-t1 --path / --ip4 disable -- sh",
    ),
    ("unlisted user: invalid arguments", UNLISTED, "$H nonsense"),
    (
        "unlisted user: jail of the policy",
        UNLISTED,
        "$H attach --jail web -- sh",
    ),
    (
        "unlisted user: variables with a listed user",
        UNLISTED,
        "USER=colibri-caller LOGNAME=colibri-caller SUDO_UID=0 $H check",
    ),
    // Start of the process.
    (
        "argc is 0",
        CALLER,
        "n=59; test $(uname -m) = aarch64 && n=221; perl -e 'my ($n, $p, $z) = ($ARGV[0] + 0, \"$ENV{H}\", pack(\"Q\", 0)); syscall($n, $p, $z, $z)' $n",
    ),
    ("argv[0] is empty", CALLER, "exec -a '' $H check"),
    (
        "setuid bit missing",
        CALLER,
        "$(dirname $H)/not-setuid check",
    ),
    (
        "no_new_privs disables the setuid bit",
        CALLER,
        "setpriv --no-new-privs $H check",
    ),
    (
        "user namespace with the caller as root",
        CALLER,
        "unshare --user --map-root-user $H check",
    ),
    ("descriptor 0 is closed", CALLER, "$H check <&-"),
    ("descriptor 1 is closed", CALLER, "$H check >&-"),
    (
        "descriptor 2 is closed, a file of root's could take its number",
        CALLER,
        "$H check 2>&- || exit $?",
    ),
    (
        "descriptors 0 to 2 are closed",
        CALLER,
        "$H check <&- >&- 2>&-",
    ),
    (
        "descriptor 0 is a directory outside of the jail",
        CALLER,
        "$H create --jail colibri-t1 --path / --ip4 disable -- sh </",
    ),
    ("descriptor 0 is write-only", CALLER, "$H check 0>/dev/null"),
    ("descriptor 1 is read-only", CALLER, "$H check 1</dev/null"),
    (
        "descriptor limit is exhausted",
        CALLER,
        "ulimit -n 4; $H create --jail db --path / --ip4 disable -- sh",
    ),
    // Arguments.
    ("missing verb", CALLER, "$H"),
    ("free command line", CALLER, "$H sh -c id"),
    ("unknown verb", CALLER, "$H list"),
    (
        "option before the verb",
        CALLER,
        "$H --jail web attach -- sh",
    ),
    ("--help", CALLER, "$H --help"),
    (
        "option and value in one argument",
        CALLER,
        "$H attach --jail=web -- sh",
    ),
    (
        "duplicate option",
        CALLER,
        "$H attach --jail web --jail db -- sh",
    ),
    (
        "options in the wrong order",
        CALLER,
        "$H attach --user colibri-agent --jail web -- sh",
    ),
    (
        "option of another verb",
        CALLER,
        "$H attach --jail web --path / -- sh",
    ),
    ("missing value", CALLER, "$H attach --jail"),
    (
        "missing -- before the program",
        CALLER,
        "$H attach --jail web sh",
    ),
    ("missing program", CALLER, "$H attach --jail web --"),
    ("empty program", CALLER, "$H attach --jail web -- ''"),
    (
        "arguments that are not UTF-8",
        CALLER,
        "$H attach --jail $'\\xff\\xfe' -- sh",
    ),
    ("arguments after check", CALLER, "$H check --jail web"),
    // Jails.
    ("attach on Linux", CALLER, "$H attach --jail web -- sh"),
    (
        "jail of another caller",
        CALLER,
        "$H signal --jail db --signal KILL --pid 7",
    ),
    (
        "jail name with an allowed name as prefix",
        CALLER,
        "$H signal --jail web2 --signal KILL --pid 7",
    ),
    (
        "jail name that is a path to a record",
        CALLER,
        "$H attach --jail ../../web -- sh",
    ),
    (
        "jail name that is an option",
        CALLER,
        "$H attach --jail --user -- sh",
    ),
    ("jail by its id", CALLER, "$H attach --jail 1 -- sh"),
    (
        "child of an allowed jail",
        CALLER,
        "$H attach --jail web.db -- sh",
    ),
    (
        "attach to a created jail",
        CALLER,
        "$H attach --jail colibri-t1 -- sh",
    ),
    (
        "create with the name of a persistent jail",
        CALLER,
        "$H create --jail web --path / --ip4 disable -- sh",
    ),
    (
        "attach to a missing jail",
        CALLER,
        "$H attach --jail agent-7 -- true",
    ),
    // Roots.
    (
        "root outside of the policy",
        CALLER,
        "$H create --jail colibri-t1 --path /root --ip4 disable -- sh",
    ),
    (
        "root above the allowed tree",
        CALLER,
        "$H create --jail colibri-t1 --path /var/tmp/colibri-helper-test --ip4 disable -- sh",
    ),
    (
        "root beside the allowed tree",
        CALLER,
        "$H create --jail colibri-t1 --path /var/tmp/colibri-helper-test2/x --ip4 disable -- sh",
    ),
    (
        "root with .. out of the allowed tree",
        CALLER,
        "$H create --jail colibri-t1 --path /var/tmp/colibri-helper-test/../../../root --ip4 disable -- sh",
    ),
    (
        "relative root",
        CALLER,
        "cd /; $H create --jail colibri-t1 --path root --ip4 disable -- sh",
    ),
    (
        "root that is a link to the host's root",
        CALLER,
        "$H create --jail colibri-t1 --path /var/tmp/colibri-helper-test/link --ip4 disable -- sh",
    ),
    (
        "root below a link to the host's root",
        CALLER,
        "$H create --jail colibri-t1 --path /var/tmp/colibri-helper-test/link/root --ip4 disable -- sh",
    ),
    (
        "root that is a file",
        CALLER,
        "$H create --jail colibri-t1 --path /var/tmp/colibri-helper-test/file --ip4 disable -- sh",
    ),
    (
        "missing root",
        CALLER,
        "$H create --jail colibri-t1 --path /var/tmp/colibri-helper-test/nothing --ip4 disable -- sh",
    ),
    (
        "root with a newline",
        CALLER,
        "$H create --jail colibri-t1 --path $'/x\\nNov 24 root: ok' --ip4 disable -- sh",
    ),
    (
        "hide through a link",
        CALLER,
        "$H create --jail colibri-t1 --path / --ip4 disable --hide /var/tmp/colibri-helper-test/link -- sh",
    ),
    (
        "hide with ..",
        CALLER,
        "$H create --jail colibri-t1 --path / --ip4 disable --hide /var/../etc -- sh",
    ),
    // Users.
    (
        "user root",
        CALLER,
        "$H create --jail colibri-t1 --path / --ip4 disable --user root -- sh",
    ),
    (
        "uid 0",
        CALLER,
        "$H create --jail colibri-t1 --path / --ip4 disable --user 0 -- sh",
    ),
    (
        "uid -1, which setresuid(2) ignores",
        CALLER,
        "$H create --jail colibri-t1 --path / --ip4 disable --user -1 -- sh",
    ),
    (
        "uid 4294967295, which is -1 as unsigned",
        CALLER,
        "$H create --jail colibri-t1 --path / --ip4 disable --user 4294967295 -- sh",
    ),
    (
        "uid 4294967296, which is 0 in 32 bits",
        CALLER,
        "$H create --jail colibri-t1 --path / --ip4 disable --user 4294967296 -- sh",
    ),
    (
        "uid of the agent with gid 0",
        CALLER,
        "$H create --jail colibri-t1 --path / --ip4 disable --user $(id -u colibri-agent):0 -- sh",
    ),
    (
        "uid of the agent with gid -1",
        CALLER,
        "$H create --jail colibri-t1 --path / --ip4 disable --user $(id -u colibri-agent):4294967295 -- sh",
    ),
    (
        "user that is the caller",
        CALLER,
        "$H create --jail colibri-t1 --path / --ip4 disable --user colibri-caller -- sh",
    ),
    (
        "user with a space",
        CALLER,
        "$H create --jail colibri-t1 --path / --ip4 disable --user 'a b' -- sh",
    ),
    // Programs.
    (
        "program outside of the policy",
        CALLER,
        "$H create --jail colibri-t1 --path /usr --ip4 disable -- /bin/sh",
    ),
    (
        "program with ..",
        CALLER,
        "$H attach --jail agent-7 -- /usr/bin/../bin/sh",
    ),
    (
        "program in the working directory",
        CALLER,
        "cd /usr/bin; $H attach --jail agent-7 -- ./true",
    ),
    (
        "program in the caller's PATH",
        CALLER,
        "PATH=/tmp:$PATH $H create --jail colibri-t1 --path /usr --ip4 disable -- sh",
    ),
    ("program ..", CALLER, "$H attach --jail agent-7 -- .."),
    (
        "missing program in the jail",
        CALLER,
        "$H create --jail colibri-t1 --path / --ip4 disable -- /bin/nothing",
    ),
    // Networks.
    (
        "address on Linux",
        CALLER,
        "$H create --jail colibri-t1 --path / --ip4 192.0.2.7 -- sh",
    ),
    (
        "invalid ip4",
        CALLER,
        "$H create --jail colibri-t1 --path / --ip4 'disable inherit' -- sh",
    ),
    (
        "missing ip4",
        CALLER,
        "$H create --jail colibri-t1 --path / -- sh",
    ),
    // Signals.
    ("signal to init", CALLER, "$H signal --signal KILL --pid 1"),
    (
        "signal to every process",
        CALLER,
        "$H signal --signal KILL --pid -1",
    ),
    (
        "signal to the process group",
        CALLER,
        "$H signal --signal KILL --pid 0",
    ),
    (
        "signal to a process of root's",
        CALLER,
        "$H signal --signal KILL --pid $ROOT",
    ),
    (
        "signal to a kernel thread",
        CALLER,
        "$H signal --signal KILL --pid 2",
    ),
    (
        "signal to the caller's shell, which is not an agent",
        CALLER,
        "$H signal --signal KILL --pid $$",
    ),
    (
        "signal to a missing process",
        CALLER,
        "$H signal --signal KILL --pid 4194303",
    ),
    (
        "pid that overflows 32 bits",
        CALLER,
        "$H signal --signal KILL --pid 4294967298",
    ),
    (
        "pid with a sign",
        CALLER,
        "$H signal --signal KILL --pid +7",
    ),
    (
        "signal outside of the policy",
        CALLER,
        "$H signal --signal STOP --pid 7",
    ),
    ("signal by number", CALLER, "$H signal --signal 9 --pid 7"),
    (
        "signal 0, which tests whether a process exists",
        CALLER,
        "$H signal --signal 0 --pid 7",
    ),
    (
        "signal in a jail that does not contain the process",
        CALLER,
        "$H signal --jail web --signal KILL --pid $$",
    ),
    // Removal.
    (
        "remove a jail that does not exist",
        CALLER,
        "$H remove --jail colibri-none",
    ),
    ("remove a persistent jail", CALLER, "$H remove --jail web"),
    ("remove the records", CALLER, "$H remove --jail ../records"),
    ("remove the lock", CALLER, "$H remove --jail lock"),
    // Files and environment.
    (
        "read the records as the caller",
        CALLER,
        "ls /run/colibri-helper-test/records",
    ),
    (
        "write the policy as the caller",
        CALLER,
        "echo >>/run/colibri-helper-test/helper.toml",
    ),
    (
        "select a policy by the environment",
        CALLER,
        "COLIBRI_HELPER_PREFIX=/tmp COLIBRI_HELPER_POLICY=/tmp/x $H signal --jail db --signal KILL --pid 7",
    ),
    (
        "run the helper under a debugger",
        CALLER,
        "strace -o /dev/null $H check",
    ),
];

/// Appends exit code and message of an attack to the table, without values that differ between calls.
fn append_result(table: &mut String, attack: &str, output: &Output) {
    let code = output
        .status
        .code()
        .map_or("signal".to_owned(), |code| code.to_string());
    let message = text(&output.stderr);
    // The pids of a kernel thread (2) and of a missing process (4194303) are constants in the scripts.
    let mut previous = "";
    let mut words = Vec::new();
    for word in message.trim_end().split(' ') {
        let varies = word
            .parse::<u32>()
            .is_ok_and(|pid| pid != 2 && pid != 4_194_303);
        let is_pid = previous == "process" && varies;
        words.push(if is_pid { "PID" } else { word });
        previous = word;
    }
    // After the pids, which may contain the digits of an uid.
    let mut message = words.join(" ");
    for user in [CALLER, OTHER, UNLISTED, AGENT] {
        message = message.replace(&format!("uid {} ", uid(user)), &format!("uid of {user} "));
        message = message.replace(&uid(user).to_string(), &format!("<{user}>"));
    }
    writeln!(table, "{attack}\n    {code}: {message}").unwrap();
}

#[test]
fn every_attempt_is_refused() {
    let helper = Helper::shared();
    let link = Path::new(TREE).join("link");
    let _ = symlink("/", &link);
    fs::write(Path::new(TREE).join("file"), "").unwrap();
    let mut table = String::new();
    for (attack, user, script) in ATTACKS {
        let script = format!("ROOT={}; {script}", std::process::id());
        let output = helper.sh(user, &script);
        let is_refusal = [1, 2, 64, 71, 77].contains(&output.status.code().unwrap());
        assert!(
            is_refusal && output.stdout.is_empty(),
            "{attack}: {} {output:?}",
            output.status
        );
        let lines = text(&output.stderr).lines().count();
        assert!(
            lines <= 1 || output.status.code() == Some(1),
            "{attack}: {output:?}"
        );
        append_result(&mut table, attack, &output);
    }
    assert!(ATTACKS.len() >= 60, "{}", ATTACKS.len());
    writeln!(table, "\n{} attacks, all refused", ATTACKS.len()).unwrap();
    insta::assert_snapshot!(table);
}

/// The answer to an unlisted user does not depend on the policy or the request.
#[test]
fn unlisted_user_gets_the_same_answer() {
    let helper = Helper::shared();
    let mut answers: Vec<_> = [
        "$H",
        "$H check",
        "$H x",
        "$H attach --jail web -- sh",
        "$H attach --jail no -- sh",
        "$H signal --signal KILL --pid 2",
        "$H remove --jail colibri-x",
    ]
    .iter()
    .map(|script| {
        let output = helper.sh(UNLISTED, script);
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    })
    .collect();
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(answers[0].0, Some(77));
}

/// A change that makes the policy unsafe or invalid.
type PolicyChange = fn(&Helper, &Path);

#[test]
fn unsafe_or_invalid_policy_is_refused() {
    let helper = Helper::exclusive();
    let policy = Path::new(PREFIX).join("helper.toml");
    let table: &[(&str, PolicyChange)] = &[
        ("it is missing", |_, policy| {
            fs::remove_file(policy).unwrap()
        }),
        ("its group can write it", |_, policy| {
            set_mode(policy, 0o664)
        }),
        ("every user can write it", |_, policy| {
            set_mode(policy, 0o646)
        }),
        ("it belongs to the caller", |_, policy| {
            std::os::unix::fs::chown(policy, Some(uid(CALLER)), None).unwrap()
        }),
        ("it is a link to a valid policy", |_, policy| {
            fs::rename(policy, policy.with_extension("real")).unwrap();
            symlink(policy.with_extension("real"), policy).unwrap();
        }),
        ("it is a directory", |_, policy| {
            fs::remove_file(policy).unwrap();
            fs::create_dir(policy).unwrap();
        }),
        ("it is a FIFO without a writer", |_, policy| {
            fs::remove_file(policy).unwrap();
            create_fifo(policy);
        }),
        ("the directory above can be written", |_, policy| {
            set_mode(policy.parent().unwrap(), 0o777)
        }),
        ("it is too long", |helper, _| {
            helper.set_policy(&format!("{POLICY}#{}", "x".repeat(1 << 17)))
        }),
        ("it is not TOML", |helper, _| helper.set_policy("rule = [[")),
        ("it is truncated", |helper, _| {
            helper.set_policy(&POLICY[..POLICY.len() - 12])
        }),
        ("it has an unknown key", |helper, _| {
            helper.set_policy(&format!("{POLICY}\nsignal = []"))
        }),
        ("it allows variables of the linker", |helper, _| {
            helper.set_policy("[[rule]]\ncallers = [\"colibri-caller\"]\nenvironment = [\"LD_*\"]")
        }),
        ("it nests a thousand lists", |helper, _| {
            helper.set_policy(&format!("a = {}", "[".repeat(1000)))
        }),
        ("it is empty", |helper, _| helper.set_policy("")),
        ("it lists no caller", |helper, _| {
            helper.set_policy("[[rule]]\ncallers = []\njails = [\"*\"]")
        }),
        ("it lists a user that does not exist", |helper, _| {
            helper.set_policy("[[rule]]\ncallers = [\"no-such-user\"]")
        }),
        ("it requires a log, and there is none", |helper, _| {
            helper.set_policy(&POLICY.replace("best-effort", "required"))
        }),
    ];
    let mut shown = String::new();
    let log_path = Path::new(PREFIX).join("log");
    for (problem, change) in table {
        helper.set_policy(POLICY);
        change(&helper, &policy);
        // The helper writes the cause only to the log.
        let _ = fs::remove_file(&log_path);
        let log = (!problem.contains("there is none"))
            .then(|| std::os::unix::net::UnixDatagram::bind(&log_path).unwrap());
        let output = helper.call(CALLER, &["check"]);
        assert!(
            !output.status.success() && output.stdout.is_empty(),
            "{problem}: {output:?}"
        );
        append_result(&mut shown, problem, &output);
        if let Some(log) = log {
            let mut bytes = [0; 4096];
            log.set_read_timeout(Some(colibri_tests::SOON)).unwrap();
            let length = log.recv(&mut bytes).unwrap();
            let line = text(&bytes[..length]);
            let reason = line
                .split_once("why=")
                .unwrap()
                .1
                .replace(&uid(CALLER).to_string(), "<caller>");
            writeln!(shown, "    log: {reason}").unwrap();
        }
    }
    let _ = fs::remove_file(&log_path);
    helper.set_policy(POLICY);
    assert!(helper.call(CALLER, &["check"]).status.success());
    insta::assert_snapshot!(shown);
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn check_prints_only_the_callers_rules() {
    let helper = Helper::shared();
    let output = helper.call(OTHER, &["check"]);
    assert!(output.status.success());
    let shown = text(&output.stdout).replace(&uid(OTHER).to_string(), "UID");
    insta::assert_snapshot!(shown);
}

#[test]
fn every_decision_is_logged_in_one_line() {
    let helper = Helper::exclusive();
    helper.set_policy(&POLICY.replace("best-effort", "required"));
    let path = Path::new(PREFIX).join("log");
    let _ = fs::remove_file(&path);
    let log = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    log.set_read_timeout(Some(colibri_tests::SOON)).unwrap();
    let mut shown = String::new();
    for (user, arguments) in [
        (UNLISTED, &["check"][..]),
        (CALLER, &["check"]),
        (
            CALLER,
            &["nonsense\nNov 24 12:00:00 host sudo: root\u{1b}[2J"],
        ),
        (CALLER, &["attach", "--jail", "db", "--", "sh"]),
        (CALLER, &["attach", "--jail", "wöb", "--", "sh"]),
        (
            CALLER,
            &[
                "create",
                "--jail",
                "colibri-log",
                "--path",
                "/",
                "--ip4",
                "disable",
                "--",
                "/bin/true",
                "secret",
            ],
        ),
        (
            CALLER,
            &[
                "create",
                "--jail",
                "colibri-log",
                "--path",
                "/ö\" why=",
                "--ip4",
                "disable",
                "--",
                "/bin/sh",
            ],
        ),
        (CALLER, &["signal", "--signal", "KILL", "--pid", "2"]),
        (CALLER, &["remove", "--jail", "colibri-log2"]),
    ] {
        helper.call(user, arguments);
        let mut bytes = [0; 4096];
        let length = log.recv(&mut bytes).unwrap();
        let line = text(&bytes[..length]);
        assert!(
            line.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
            "{line:?}"
        );
        let (tag, message) = line.split_once("]: ").unwrap();
        let tag = tag.split_once('[').unwrap().0;
        writeln!(shown, "{tag}[PID]: {message}").unwrap();
    }
    log.set_nonblocking(true).unwrap();
    assert!(
        log.recv(&mut [0; 10]).is_err(),
        "more than one line per call"
    );
    fs::remove_file(&path).unwrap();
    for user in [CALLER, UNLISTED, AGENT] {
        shown = shown.replace(&format!("uid={}", uid(user)), &format!("uid=<{user}>"));
        shown = shown.replace(&format!("uid {}", uid(user)), &format!("uid <{user}>"));
    }
    insta::assert_snapshot!(shown);
}

/// The helper refuses random arguments by one line of printable ASCII.
#[test]
fn random_arguments_get_one_printable_line() {
    let helper = Helper::shared();
    let vocabulary = [
        "attach",
        "create",
        "signal",
        "remove",
        "check",
        "--jail",
        "--path",
        "--ip4",
        "--hide",
        "--user",
        "--workdir",
        "--signal",
        "--pid",
        "--",
        "web",
        "colibri-t1",
        "/",
        "/etc",
        "disable",
        "inherit",
        "KILL",
        "2",
        "0",
        "-1",
        "4294967295",
        "\u{1b}[31m",
        "a\nb",
        "ö",
        "",
        "../..",
        "%s%n",
        "$(id)",
        "colibri-agent",
        "root",
        "/bin/nothing",
    ];
    // With this seed the policy refuses every request, so no program runs.
    let mut random = fastrand::Rng::with_seed(2);
    for round in 0..400 {
        let mut arguments: Vec<&str> = (0..random.usize(..14))
            .map(|_| *random.choice(&vocabulary).unwrap())
            .collect();
        if arguments == ["check"] {
            arguments.push("x");
        }
        // Every second request begins like an allowed one.
        if round % 2 == 0 {
            arguments.splice(
                0..0,
                ["create"]
                    .into_iter()
                    .chain(CREATE.split(' '))
                    .take(1 + random.usize(..7)),
            );
        }
        let user = if round % 4 == 0 { UNLISTED } else { CALLER };
        let output = helper.call(user, &arguments);
        let message = text(&output.stderr);
        assert!(
            [64, 71, 77].contains(&output.status.code().unwrap()),
            "{arguments:?}: {output:?}"
        );
        assert!(output.stdout.is_empty(), "{arguments:?}: {output:?}");
        let is_printable = message
            .bytes()
            .filter(|byte| *byte != b'\n')
            .all(|byte| (b' '..=b'~').contains(&byte));
        assert!(
            is_printable
                && message.lines().count() == 1
                && message.starts_with("colibri-jail-helper: "),
            "{arguments:?}: {message:?}"
        );
    }
}

/// Stops the other thread of the test when it is dropped.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The caller exchanges its directory with a link to the host's root while the helper opens it as a root.
#[test]
fn swapped_links_never_escape_the_allowed_root() {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let helper = Helper::shared();
    let directory = Path::new(TREE).join("swap");
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(directory.join("real/etc")).unwrap();
    symlink("/", directory.join("link")).unwrap();
    let stop = AtomicBool::new(false);
    let swaps = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                renameat_with(
                    CWD,
                    directory.join("real"),
                    CWD,
                    directory.join("link"),
                    RenameFlags::EXCHANGE,
                )
                .unwrap();
                swaps.fetch_add(1, Ordering::Relaxed);
            }
        });
        // The scope waits for the thread, so the thread must stop after a panic, too.
        let _stop = StopOnDrop(&stop);
        let (mut as_directory, mut as_link) = (0, 0);
        for round in 0..200 {
            // The exchanged component is the last one, or the one before it. Only the host has the program, so the
            // program runs if the helper follows a link.
            let is_last = round % 2 == 0;
            let root = directory.join(if is_last { "real" } else { "real/etc" });
            let arguments = [
                "create",
                "--jail",
                "colibri-swap",
                "--path",
                root.to_str().unwrap(),
                "--ip4",
                "disable",
                "--",
                if is_last { "/usr/bin/env" } else { "/passwd" },
            ];
            let output = helper.call(CALLER, &arguments);
            let message = text(&output.stderr);
            assert!(
                output.stdout.is_empty(),
                "the host's program ran: {output:?}"
            );
            if message.contains("leads through a symbolic link") {
                as_link += 1;
            } else {
                assert!(
                    message.contains("no program /"),
                    "round {round}: {output:?}"
                );
                as_directory += 1;
            }
        }
        // Both outcomes occurred, so the thread exchanged the paths during the calls.
        assert!(as_directory > 0 && as_link > 0, "{as_directory} {as_link}");
    });
    assert!(swaps.into_inner() > 1000);
    eventually("the directory is removed", || {
        fs::remove_dir_all(&directory).ok()
    });
}
