//! The README's commands, as a reader would type them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use colibri_tests::{Daemon, eventually, program, read, text};

#[test]
fn the_commands_of_the_readme_work() {
    let readme =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    let block = readme
        .split("<!-- tested -->\n```sh\n")
        .nth(1)
        .expect("no tested block");
    let script = block.split("```").next().unwrap();
    let place = Daemon::place();
    let output = place
        .command("colibri")
        .get_envs()
        .fold(
            &mut std::process::Command::new("sh"),
            |command, (name, value)| command.env(name, value.unwrap()),
        )
        .arg("-euc")
        .arg(script)
        .env(
            "PATH",
            format!(
                "{}:/usr/bin:/bin",
                program("colibri").parent().unwrap().display()
            ),
        )
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let (shown, said) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{shown}{said}");
    for part in [
        "hi\nexit code 7\n",
        "go on\n",
        "--ro-bind /srv/agent /",
        "/usr/sbin/jexec -U agent web pi",
    ] {
        assert!(
            shown.contains(part),
            "{part:?} is missing in:\n{shown}{said}"
        );
    }
    eventually("the daemon has ended", || {
        (!place.socket().exists()).then_some(())
    });
}

#[test]
fn the_picture_is_of_the_table_as_it_is_now() {
    let readme = read("README.md");
    let before = readme.split("(docs/picture.svg)").next().unwrap();
    assert!(before.len() < readme.len(), "no picture");
    assert!(before.lines().count() < 9, "the picture is at the top");
    let picture = read("docs/picture.svg");
    assert!(picture.len() < 40_000, "{} bytes", picture.len());
    let elsewhere = picture.replace("http://www.w3.org/2000/svg", "");
    assert!(!elsewhere.contains("://"), "it fetches something");
    // Words are apart by spaces that do not break.
    let shown = picture.replace("&#160;", " ");
    let titles = read("crates/colibri-cli/src/top/columns.rs");
    for title in [
        "NAME", "STATE", "SINCE", "TOOL", "CPU", "MEM", "AGE", "OUTPUT", "RUNTIME", "JAIL",
    ] {
        assert!(
            titles.contains(&format!("=> \"{title}\",")),
            "{title} is no column"
        );
        assert!(shown.contains(title), "{title}: run make picture");
    }
    for state in ["working", "blocked", "idle", "error", "done"] {
        assert!(shown.contains(state), "{state}: run make picture");
    }
}
