//! The setuid helper as its users find it: what it refuses, tried by an unprivileged user against the real
//! program, one line of a table for each attempt.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Output;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use colibri_tests::helper::{AGENT, CALLER, Helper, OTHER, POLICY, PREFIX, STRANGER, TREE, uid};
use colibri_tests::{eventually, text};

/// One attempt: what it tries, who does it, and how; `$H` is the helper.
type Attempt = (&'static str, &'static str, &'static str);

/// A whole `create` that the policy allows, to be spoilt at one place.
const CREATE: &str = "--jail colibri-t1 --path / --ip4 disable";

const ATTEMPTS: &[Attempt] = &[
    // Callers.
    (
        "a user who is not in the policy asks what it may do",
        STRANGER,
        "$H check",
    ),
    (
        "a stranger makes a jail",
        STRANGER,
        "$H create --jail colibri-t1 --path / --ip4 disable -- sh",
    ),
    (
        "a stranger with words that are no request learns no more",
        STRANGER,
        "$H nonsense",
    ),
    (
        "a stranger names a jail that is in the policy",
        STRANGER,
        "$H attach --jail web -- sh",
    ),
    (
        "a stranger who says he is the caller",
        STRANGER,
        "USER=colibri-caller LOGNAME=colibri-caller SUDO_UID=0 $H check",
    ),
    // How it is started.
    (
        "argc is 0",
        CALLER,
        "n=59; test $(uname -m) = aarch64 && n=221; perl -e 'my ($n, $p, $z) = ($ARGV[0] + 0, \"$ENV{H}\", pack(\"Q\", 0)); syscall($n, $p, $z, $z)' $n",
    ),
    ("argv[0] is empty", CALLER, "exec -a '' $H check"),
    ("no setuid bit", CALLER, "$(dirname $H)/not-setuid check"),
    (
        "no_new_privs takes the setuid bit away",
        CALLER,
        "setpriv --no-new-privs $H check",
    ),
    (
        "in a user namespace that says its user is root",
        CALLER,
        "unshare --user --map-root-user $H check",
    ),
    ("descriptor 0 is closed", CALLER, "$H check <&-"),
    ("descriptor 1 is closed", CALLER, "$H check >&-"),
    (
        "descriptor 2 is closed, so that a file of root's could be opened as it",
        CALLER,
        "$H check 2>&- || exit $?",
    ),
    (
        "descriptors 0 to 2 are closed",
        CALLER,
        "$H check <&- >&- 2>&-",
    ),
    (
        "descriptor 0 is a directory that leads out of the jail",
        CALLER,
        "$H create --jail colibri-t1 --path / --ip4 disable -- sh </",
    ),
    (
        "descriptor 0 cannot be read",
        CALLER,
        "$H check 0>/dev/null",
    ),
    (
        "descriptor 1 cannot be written",
        CALLER,
        "$H check 1</dev/null",
    ),
    (
        "no descriptor may be opened",
        CALLER,
        "ulimit -n 4; $H create --jail db --path / --ip4 disable -- sh",
    ),
    // Words.
    ("no verb", CALLER, "$H"),
    ("a free command line", CALLER, "$H sh -c id"),
    ("a verb that does not exist", CALLER, "$H list"),
    (
        "an option before the verb",
        CALLER,
        "$H --jail web attach -- sh",
    ),
    ("help, as other programs have", CALLER, "$H --help"),
    (
        "option and value in one word",
        CALLER,
        "$H attach --jail=web -- sh",
    ),
    (
        "an option given twice, the second to count",
        CALLER,
        "$H attach --jail web --jail db -- sh",
    ),
    (
        "options in another order",
        CALLER,
        "$H attach --user colibri-agent --jail web -- sh",
    ),
    (
        "an option of another verb",
        CALLER,
        "$H attach --jail web --path / -- sh",
    ),
    ("a value that is missing", CALLER, "$H attach --jail"),
    (
        "no dashes before the program",
        CALLER,
        "$H attach --jail web sh",
    ),
    ("no program", CALLER, "$H attach --jail web --"),
    ("an empty program", CALLER, "$H attach --jail web -- ''"),
    (
        "bytes that are no text",
        CALLER,
        "$H attach --jail $'\\xff\\xfe' -- sh",
    ),
    ("words behind check", CALLER, "$H check --jail web"),
    // Jails.
    (
        "a jail of another name",
        CALLER,
        "$H attach --jail db -- sh",
    ),
    (
        "a name that begins with the one allowed",
        CALLER,
        "$H attach --jail web2 -- sh",
    ),
    (
        "a name that leads to another record",
        CALLER,
        "$H attach --jail ../../web -- sh",
    ),
    (
        "a name that is an option",
        CALLER,
        "$H attach --jail --user -- sh",
    ),
    ("a jail by its id", CALLER, "$H attach --jail 1 -- sh"),
    (
        "a child of an allowed jail",
        CALLER,
        "$H attach --jail web.db -- sh",
    ),
    (
        "another agent's own jail",
        CALLER,
        "$H attach --jail colibri-t1 -- sh",
    ),
    (
        "a jail made under a persistent one's name",
        CALLER,
        "$H create --jail web --path / --ip4 disable -- sh",
    ),
    (
        "an allowed jail that is not there",
        CALLER,
        "$H attach --jail agent-7 -- true",
    ),
    // Roots.
    (
        "a root that is not in the policy",
        CALLER,
        "$H create --jail colibri-t1 --path /root --ip4 disable -- sh",
    ),
    (
        "a root above the allowed tree",
        CALLER,
        "$H create --jail colibri-t1 --path /var/tmp/colibri-helper-test --ip4 disable -- sh",
    ),
    (
        "a root beside the allowed tree",
        CALLER,
        "$H create --jail colibri-t1 --path /var/tmp/colibri-helper-test2/x --ip4 disable -- sh",
    ),
    (
        "dots out of the allowed tree",
        CALLER,
        "$H create --jail colibri-t1 --path /var/tmp/colibri-helper-test/../../../root --ip4 disable -- sh",
    ),
    (
        "a relative root",
        CALLER,
        "cd /; $H create --jail colibri-t1 --path root --ip4 disable -- sh",
    ),
    (
        "a link in the tree, to the host's root",
        CALLER,
        "$H create --jail colibri-t1 --path /var/tmp/colibri-helper-test/link --ip4 disable -- sh",
    ),
    (
        "a link on the way, to the host's root",
        CALLER,
        "$H create --jail colibri-t1 --path /var/tmp/colibri-helper-test/link/root --ip4 disable -- sh",
    ),
    (
        "a root that is a file",
        CALLER,
        "$H create --jail colibri-t1 --path /var/tmp/colibri-helper-test/file --ip4 disable -- sh",
    ),
    (
        "a root that is not there",
        CALLER,
        "$H create --jail colibri-t1 --path /var/tmp/colibri-helper-test/nothing --ip4 disable -- sh",
    ),
    (
        "a root with a line's end in it",
        CALLER,
        "$H create --jail colibri-t1 --path $'/x\\nNov 24 root: ok' --ip4 disable -- sh",
    ),
    (
        "to hide through a link",
        CALLER,
        "$H create --jail colibri-t1 --path / --ip4 disable --hide /var/tmp/colibri-helper-test/link -- sh",
    ),
    (
        "to hide by dots",
        CALLER,
        "$H create --jail colibri-t1 --path / --ip4 disable --hide /var/../etc -- sh",
    ),
    // Users.
    (
        "to be root",
        CALLER,
        "$H create --jail colibri-t1 --path / --ip4 disable --user root -- sh",
    ),
    (
        "to be uid 0",
        CALLER,
        "$H create --jail colibri-t1 --path / --ip4 disable --user 0 -- sh",
    ),
    (
        "uid -1, which setresuid(2) reads as no change",
        CALLER,
        "$H create --jail colibri-t1 --path / --ip4 disable --user -1 -- sh",
    ),
    (
        "uid 4294967295, the same in unsigned",
        CALLER,
        "$H create --jail colibri-t1 --path / --ip4 disable --user 4294967295 -- sh",
    ),
    (
        "uid 4294967296, which is 0 in 32 bits",
        CALLER,
        "$H create --jail colibri-t1 --path / --ip4 disable --user 4294967296 -- sh",
    ),
    (
        "the agent's uid with root's group",
        CALLER,
        "$H create --jail colibri-t1 --path / --ip4 disable --user $(id -u colibri-agent):0 -- sh",
    ),
    (
        "the agent's uid with group -1",
        CALLER,
        "$H create --jail colibri-t1 --path / --ip4 disable --user $(id -u colibri-agent):4294967295 -- sh",
    ),
    (
        "to be oneself",
        CALLER,
        "$H create --jail colibri-t1 --path / --ip4 disable --user colibri-caller -- sh",
    ),
    (
        "a user with white space",
        CALLER,
        "$H create --jail colibri-t1 --path / --ip4 disable --user 'a b' -- sh",
    ),
    // Programs.
    (
        "a program that is not allowed",
        CALLER,
        "$H attach --jail agent-7 -- /bin/sh",
    ),
    (
        "a program by dots",
        CALLER,
        "$H attach --jail agent-7 -- /usr/bin/../bin/sh",
    ),
    (
        "a program in the working directory",
        CALLER,
        "cd /usr/bin; $H attach --jail agent-7 -- ./true",
    ),
    (
        "a program found in the caller's PATH",
        CALLER,
        "PATH=/tmp:$PATH $H attach --jail agent-7 -- sh",
    ),
    (
        "a name that walks",
        CALLER,
        "$H attach --jail agent-7 -- ..",
    ),
    (
        "a program that is not there",
        CALLER,
        "$H create --jail colibri-t1 --path / --ip4 disable -- /bin/nothing",
    ),
    // Networks.
    (
        "an address that is not in the policy",
        CALLER,
        "$H create --jail colibri-t1 --path / --ip4 192.0.2.7 -- sh",
    ),
    (
        "ip4 that is no word",
        CALLER,
        "$H create --jail colibri-t1 --path / --ip4 'disable inherit' -- sh",
    ),
    (
        "no ip4 at all",
        CALLER,
        "$H create --jail colibri-t1 --path / -- sh",
    ),
    // Signals.
    (
        "a signal to init",
        CALLER,
        "$H signal --signal KILL --pid 1",
    ),
    (
        "a signal to every process",
        CALLER,
        "$H signal --signal KILL --pid -1",
    ),
    (
        "a signal to the own group",
        CALLER,
        "$H signal --signal KILL --pid 0",
    ),
    (
        "a signal to a process of root's",
        CALLER,
        "$H signal --signal KILL --pid $ROOT",
    ),
    (
        "a signal to a kernel thread",
        CALLER,
        "$H signal --signal KILL --pid 2",
    ),
    (
        "a signal to the caller's own shell, which is no agent",
        CALLER,
        "$H signal --signal KILL --pid $$",
    ),
    (
        "a signal to a process that is not there",
        CALLER,
        "$H signal --signal KILL --pid 4194303",
    ),
    (
        "a pid that is another one in 32 bits",
        CALLER,
        "$H signal --signal KILL --pid 4294967298",
    ),
    (
        "a pid with a sign",
        CALLER,
        "$H signal --signal KILL --pid +7",
    ),
    (
        "a signal that is not in the policy",
        CALLER,
        "$H signal --signal STOP --pid 7",
    ),
    ("a signal by number", CALLER, "$H signal --signal 9 --pid 7"),
    (
        "no signal but a look whether a process lives",
        CALLER,
        "$H signal --signal 0 --pid 7",
    ),
    (
        "a signal in a jail that is not the process's",
        CALLER,
        "$H signal --jail web --signal KILL --pid $$",
    ),
    // Removal.
    (
        "the removal of a jail that nobody made",
        CALLER,
        "$H remove --jail colibri-none",
    ),
    (
        "the removal of a persistent jail",
        CALLER,
        "$H remove --jail web",
    ),
    (
        "the removal of the records",
        CALLER,
        "$H remove --jail ../records",
    ),
    ("the removal of the lock", CALLER, "$H remove --jail lock"),
    // Around it.
    (
        "the helper's records, read by its caller",
        CALLER,
        "ls /run/colibri-helper-test/records",
    ),
    (
        "the policy, written by its caller",
        CALLER,
        "echo >>/run/colibri-helper-test/helper.toml",
    ),
    (
        "another policy by the environment",
        CALLER,
        "COLIBRI_HELPER_PREFIX=/tmp COLIBRI_HELPER_POLICY=/tmp/x $H attach --jail db -- sh",
    ),
    (
        "the helper under a debugger",
        CALLER,
        "strace -o /dev/null $H check",
    ),
];

fn show(table: &mut String, what: &str, output: &Output) {
    let code = output
        .status
        .code()
        .map_or("signal".to_owned(), |code| code.to_string());
    let mut said = text(&output.stderr).trim_end().to_owned();
    for user in [CALLER, OTHER, STRANGER, AGENT] {
        said = said.replace(&format!("uid {} ", uid(user)), &format!("uid of {user} "));
        said = said.replace(&uid(user).to_string(), &format!("<{user}>"));
    }
    // What differs from call to call; the kernel's own and the greatest pid are what was asked for.
    let mut before = "";
    let mut shown = Vec::new();
    for word in said.split(' ') {
        let number = word
            .parse::<u32>()
            .is_ok_and(|pid| pid != 2 && pid != 4_194_303);
        let pid = before == "process" && number;
        shown.push(if pid { "PID" } else { word });
        before = word;
    }
    writeln!(table, "{what}\n    {code}: {}", shown.join(" ")).unwrap();
}

#[test]
fn every_attempt_is_refused() {
    let helper = Helper::shared();
    let link = Path::new(TREE).join("link");
    let _ = symlink("/", &link);
    fs::write(Path::new(TREE).join("file"), "").unwrap();
    let mut table = String::new();
    for (what, who, how) in ATTEMPTS {
        let script = format!("ROOT={}; {how}", std::process::id());
        let output = helper.sh(who, &script);
        let is_code = [1, 2, 64, 71, 77].contains(&output.status.code().unwrap());
        assert!(
            is_code && output.stdout.is_empty(),
            "{what}: {} {output:?}",
            output.status
        );
        let lines = text(&output.stderr).lines().count();
        assert!(
            lines <= 1 || output.status.code() == Some(1),
            "{what}: {output:?}"
        );
        show(&mut table, what, &output);
    }
    assert!(ATTEMPTS.len() >= 60, "{}", ATTEMPTS.len());
    writeln!(table, "\n{} attempts, all refused", ATTEMPTS.len()).unwrap();
    insta::assert_snapshot!(table);
}

/// A stranger sees the same words whatever the policy holds and whatever is asked.
#[test]
fn a_stranger_learns_nothing() {
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
        let output = helper.sh(STRANGER, script);
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

type Spoil = fn(&Helper, &Path);

#[test]
fn a_policy_that_others_could_have_made_is_none() {
    let helper = Helper::alone();
    let policy = Path::new(PREFIX).join("helper.toml");
    let table: &[(&str, Spoil)] = &[
        ("it is missing", |_, policy| {
            fs::remove_file(policy).unwrap()
        }),
        ("its group can write it", |_, policy| mode(policy, 0o664)),
        ("everybody can write it", |_, policy| mode(policy, 0o646)),
        ("it is the caller's", |_, policy| {
            std::os::unix::fs::chown(policy, Some(uid(CALLER)), None).unwrap()
        }),
        ("it is a link to one that is good", |_, policy| {
            fs::rename(policy, policy.with_extension("real")).unwrap();
            symlink(policy.with_extension("real"), policy).unwrap();
        }),
        ("it is a directory", |_, policy| {
            fs::remove_file(policy).unwrap();
            fs::create_dir(policy).unwrap();
        }),
        ("it is a FIFO that nobody writes", |_, policy| {
            fs::remove_file(policy).unwrap();
            let made = std::process::Command::new("mkfifo")
                .arg(policy)
                .status()
                .unwrap();
            assert!(made.success());
        }),
        ("the directory above can be written", |_, policy| {
            mode(policy.parent().unwrap(), 0o777)
        }),
        ("it is too long", |helper, _| {
            helper.set_policy(&format!("{POLICY}#{}", "x".repeat(1 << 17)))
        }),
        ("it is not TOML", |helper, _| helper.set_policy("rule = [[")),
        ("it is cut off in the middle", |helper, _| {
            helper.set_policy(&POLICY[..POLICY.len() - 12])
        }),
        ("it has a field that is not known", |helper, _| {
            helper.set_policy(&format!("{POLICY}\nsignal = []"))
        }),
        ("it lets the linker's variables pass", |helper, _| {
            helper.set_policy("[[rule]]\ncallers = [\"colibri-caller\"]\nenvironment = [\"LD_*\"]")
        }),
        ("it nests a thousand lists", |helper, _| {
            helper.set_policy(&format!("a = {}", "[".repeat(1000)))
        }),
        ("it is empty", |helper, _| helper.set_policy("")),
        ("it names no caller", |helper, _| {
            helper.set_policy("[[rule]]\ncallers = []\njails = [\"*\"]")
        }),
        ("it names a user that does not exist", |helper, _| {
            helper.set_policy("[[rule]]\ncallers = [\"nobody-at-all\"]")
        }),
        ("it wants a log, and there is none", |helper, _| {
            helper.set_policy(&POLICY.replace("best-effort", "required"))
        }),
    ];
    let mut shown = String::new();
    let log_path = Path::new(PREFIX).join("log");
    for (what, spoil) in table {
        helper.set_policy(POLICY);
        spoil(&helper, &policy);
        // The caller is told little; the administrator finds the reason in the log.
        let _ = fs::remove_file(&log_path);
        let log = (!what.contains("there is none"))
            .then(|| std::os::unix::net::UnixDatagram::bind(&log_path).unwrap());
        let output = helper.call(CALLER, &["check"]);
        assert!(
            !output.status.success() && output.stdout.is_empty(),
            "{what}: {output:?}"
        );
        show(&mut shown, what, &output);
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

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn check_prints_the_callers_own_rules() {
    let helper = Helper::shared();
    let output = helper.call(OTHER, &["check"]);
    assert!(output.status.success());
    let shown = text(&output.stdout).replace(&uid(OTHER).to_string(), "UID");
    insta::assert_snapshot!(shown);
}

#[test]
fn every_decision_is_one_line_in_the_log() {
    let helper = Helper::alone();
    helper.set_policy(&POLICY.replace("best-effort", "required"));
    let path = Path::new(PREFIX).join("log");
    let _ = fs::remove_file(&path);
    let log = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    log.set_read_timeout(Some(colibri_tests::SOON)).unwrap();
    let mut shown = String::new();
    for (who, words) in [
        (STRANGER, &["check"][..]),
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
        helper.call(who, words);
        let mut bytes = [0; 4096];
        let length = log.recv(&mut bytes).unwrap();
        let line = text(&bytes[..length]);
        assert!(
            line.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
            "{line:?}"
        );
        let (front, rest) = line.split_once("]: ").unwrap();
        let front = front.split_once('[').unwrap().0;
        writeln!(shown, "{front}[PID]: {rest}").unwrap();
    }
    log.set_nonblocking(true).unwrap();
    assert!(log.recv(&mut [0; 10]).is_err(), "one line a call");
    fs::remove_file(&path).unwrap();
    for user in [CALLER, STRANGER, AGENT] {
        shown = shown.replace(&format!("uid={}", uid(user)), &format!("uid=<{user}>"));
        shown = shown.replace(&format!("uid {}", uid(user)), &format!("uid <{user}>"));
    }
    insta::assert_snapshot!(shown);
}

/// Words at random, from a fixed seed: whatever they are, the answer is one clean line, and nothing runs.
#[test]
fn random_words_are_answered_with_one_clean_line() {
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
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    for round in 0..400 {
        let mut words: Vec<&str> = (0..random(14))
            .map(|_| vocabulary[random(vocabulary.len())])
            .collect();
        if words == ["check"] {
            words.push("x");
        }
        // Half of them are near what is right.
        if round % 2 == 0 {
            words.splice(
                0..0,
                ["create"]
                    .into_iter()
                    .chain(CREATE.split(' '))
                    .take(1 + random(7)),
            );
        }
        let who = if round % 4 == 0 { STRANGER } else { CALLER };
        let output = helper.call(who, &words);
        let said = text(&output.stderr);
        assert!(
            [64, 71, 77].contains(&output.status.code().unwrap()),
            "{words:?}: {output:?}"
        );
        assert!(output.stdout.is_empty(), "{words:?}: {output:?}");
        let clean = said
            .bytes()
            .filter(|byte| *byte != b'\n')
            .all(|byte| (b' '..=b'~').contains(&byte));
        assert!(
            clean && said.lines().count() == 1 && said.starts_with("colibri-jail-helper: "),
            "{words:?}: {said:?}"
        );
    }
}

/// Tells the other thread to end.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The caller swaps directories of its own for links to the host's root while it asks for them as roots.
#[test]
fn links_and_renames_swapped_during_a_call_lead_nowhere() {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let helper = Helper::shared();
    let place = Path::new(TREE).join("swap");
    let _ = fs::remove_dir_all(&place);
    fs::create_dir_all(place.join("real/etc")).unwrap();
    symlink("/", place.join("link")).unwrap();
    let stop = AtomicBool::new(false);
    let swaps = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                renameat_with(
                    CWD,
                    place.join("real"),
                    CWD,
                    place.join("link"),
                    RenameFlags::EXCHANGE,
                )
                .unwrap();
                swaps.fetch_add(1, Ordering::Relaxed);
            }
        });
        // Dropped at the end, also by a panic: the scope waits for the swaps.
        let _stop = Stop(&stop);
        let (mut as_directory, mut as_link) = (0, 0);
        for round in 0..200 {
            // The last part and one on the way; a file that only the host has, so that following shows.
            let root = place.join(if round % 2 == 0 { "real" } else { "real/etc" });
            let words = [
                "create",
                "--jail",
                "colibri-swap",
                "--path",
                root.to_str().unwrap(),
                "--ip4",
                "disable",
                "--",
                "/usr/bin/env",
            ];
            let words_on_the_way = words.map(|word| {
                if word == "/usr/bin/env" && round % 2 == 1 {
                    "/passwd"
                } else {
                    word
                }
            });
            let output = helper.call(CALLER, &words_on_the_way);
            let said = text(&output.stderr);
            assert!(
                output.stdout.is_empty(),
                "the host's program ran: {output:?}"
            );
            if said.contains("is a symbolic link") {
                as_link += 1;
            } else {
                assert!(said.contains("no program /"), "round {round}: {output:?}");
                as_directory += 1;
            }
        }
        // Both were met, so the swaps did fall into the calls.
        assert!(as_directory > 0 && as_link > 0, "{as_directory} {as_link}");
    });
    assert!(swaps.into_inner() > 1000);
    eventually("the place is gone", || fs::remove_dir_all(&place).ok());
}
