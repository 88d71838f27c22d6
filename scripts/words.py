#!/usr/bin/env python3
"""Checks the language of the tracked text: words that hide a mechanism, long test names, commit subjects.

usage: scripts/words.py [--root DIRECTORY] [--base COMMIT] [FILE...]

Prints FILE:LINE, the match and a replacement for each finding, and exits with 1 if there is one. FILE restricts the check
to these paths. A line that must contain such a word, for example a table of bad examples, carries the marker `words:allow`.
A word in quotes or backquotes is a literal and passes.
"""

import argparse
import pathlib
import re
import subprocess
import sys

# Pattern and replacement. A space in a pattern matches line breaks and comment markers too, so wrapped phrases are found.
WORDS = {
    r"told": "name the mechanism: reported, notified, sent",
    r"who(m)?ever": "name the component or the user",
    r"mend(s|ed|ing|er)?": "fix",
    r"(no|some|any|every)body": "name the component or the user",
    r"of (its|his|their|our|your|one's) own(?! \w+'s)": "own, dedicated, separate",
    r"what there is": "name the thing",
    r"whatever": "name the thing, or: even if, regardless of",
    r"however": "but, or: regardless of",
    r"(to )?be had": "available",
    r"(by|at) hand": "manually",
    r"made for": "created for, designed for",
    r"(go|goes|went|going) on": "continue, keep running",
    r"looks? (at|whether)|looked (at|whether)|looking at": "check, read, inspect",
    r"(is|are|was|were) news|no news": "new, a change",
    r"as people|for people": "name the user or the format",
    r"(hold|holds|held) to (a |its |their |the )?limits?": "enforce limits",
    r"away with|here and now": "remove, now",
    r"(?<!there\s)(is|are|was|were) no(?! longer| more| \d)": "is not …, there is no …",
    r"(is|are) to be": "must be",
    r"of ours": "name the component",
    r"with(out)? a wait|at leisure": "immediately, asynchronously",
}
MAX_TEST_NAME = 60
MAX_SUBJECT = 72
# Last commit before the rule for subjects: the check covers later commits only.
BASE = "a0559de34dd74e9c46bec6854c292d5b308f72eb"
MARKER = "words:allow"
# Generated and recorded text, and the definition and test of this check.
EXCLUDED = re.compile(
    r"(^|/)LICENSE$|^(scripts/words\.py|tests/tests/word_check\.rs)$|\.(svg|png|proptest-regressions)$|(^|/)(Cargo\.lock|package-lock\.json)$"
    r"|^fuzz/seeds/|/tests/recorded/|/tests/snapshots/recorded__"
)
QUOTES = tuple("\"'`\\")
GAP = r"(?:[ \t]|\n[ \t]*(?://[/!]?|[#*>.]|--)?)+"
PATTERNS = [
    (re.compile(rf"(?<![A-Za-z]){word.replace(' ', GAP)}(?![A-Za-z])", re.I), advice) for word, advice in WORDS.items()
]
TEST = re.compile(r"#\[(?:tokio::)?test\b[^\]]*\](?:\s*#\[[^\]]*\]|\s*//[^\n]*)*\s*(?:pub )?(?:async )?fn (\w+)")
SUBJECT = re.compile(r"[a-z][a-z0-9-]*(, [a-z][a-z0-9-]*)*: \S.*[^.]")


def git(root, *arguments):
    command = ["git", "-c", f"safe.directory={root}", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def check_text(text):
    """Returns (line number, match, advice) of each finding in a file."""
    lines = text.split("\n")
    for pattern, advice in PATTERNS:
        for match in pattern.finditer(text):
            # A quoted word is a literal: a user name, a field name.
            quoted = text[match.start() - 1 : match.start()] in QUOTES and text[match.end() : match.end() + 1] in QUOTES
            line = text.count("\n", 0, match.start())
            if not quoted and MARKER not in lines[line]:
                yield line + 1, f'"{" ".join(match[0].split())}"', advice
    for match in TEST.finditer(text):
        if len(match[1]) > MAX_TEST_NAME:
            line = text.count("\n", 0, match.start(1)) + 1
            yield line, match[1], f"subject_condition_result in {MAX_TEST_NAME} characters, not {len(match[1])}"


def check_subjects(root, base):
    """Returns (commit, subject, advice) of each commit since `base` whose subject breaks the rules."""
    log = git(root, "log", "--no-merges", "--format=%h %s", f"{base}..HEAD")
    if log.returncode:
        print(f"commit subjects: not checked, this clone lacks {base}; run: git fetch --unshallow", file=sys.stderr)
    for line in log.stdout.splitlines():
        commit, subject = line.split(" ", 1)
        if len(subject) > MAX_SUBJECT or not SUBJECT.fullmatch(subject):
            yield commit, subject, f"`area: imperative summary` in at most {MAX_SUBJECT} characters"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent.parent)
    parser.add_argument("--base", default=BASE)
    parser.add_argument("files", nargs="*")
    options = parser.parse_args()
    listing = git(options.root, "ls-files", "-z", "--", *options.files)
    if listing.returncode:
        sys.exit(f"cannot list the tracked files: {listing.stderr.strip()}")
    found = 0
    for name in filter(None, listing.stdout.split("\0")):
        path = options.root / name
        if EXCLUDED.search(name) or not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for line, match, advice in sorted(check_text(text)):
            found += 1
            print(f"{name}:{line}: {match}: {advice}")
    for commit, subject, advice in check_subjects(options.root, options.base):
        found += 1
        print(f"commit {commit}: {subject}: {advice}")
    if found:
        sys.exit(f"{found} findings; rewrite these sentences and names, see the style section of CONTRIBUTING.md")


if __name__ == "__main__":
    main()
