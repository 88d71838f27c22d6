//! Checks that every test that docs/reliability.md names exists.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use colibri_tests::read;

#[test]
fn reliability_page_names_existing_tests() {
    let text = read("docs/reliability.md");
    let mut named = 0;
    for line in text.lines().filter(|line| line.starts_with('|')) {
        let mut source = String::new();
        // Every second part is in backquotes.
        for word in line.split('`').skip(1).step_by(2) {
            if word.ends_with(".rs") {
                source = read(word);
            } else if word.contains('_') {
                named += 1;
                let function = format!("fn {word}(");
                assert!(source.contains(&function), "no {word} in: {line}");
            }
        }
    }
    assert!(named > 20, "{named} tests are named");
}
