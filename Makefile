# `make demo` and `make test` set up a fresh machine and do everything.

.PHONY: demo test attacks install deb torture fuzz cgroups freebsd man picture audit miri sanitize bench bench-compare

demo: ## Set up, build, and let a real agent work in a sandbox: AGENT=pi, claude, codex, gemini, opencode, qwen or copilot
	@AGENT="$(AGENT)" scripts/demo.sh

test: ## Set up and run everything that CI runs
	@scripts/test.sh

attacks: ## Attack sandboxes as an ordinary user and as root, and print the table; COLIBRI_ATTACKS="PART OF A LINE"
	@scripts/attacks.sh

install: ## Build and install programs, manual pages, completions and units under PREFIX (/usr/local) in DESTDIR
	@PREFIX=$(PREFIX) DESTDIR=$(DESTDIR) scripts/install.sh

deb: ## Build a Debian package of all programs
	@scripts/deb.sh

torture: ## Inject faults while agents write and count losses: ROUNDS=200, or SECONDS=60; SEED=
	@scripts/torture.sh $(if $(SECONDS),--seconds $(SECONDS),--rounds $(or $(ROUNDS),200)) $(if $(SEED),--seed $(SEED))

fuzz: ## Fuzz the codec, the journal, glasspane and the setuid helper: SECONDS=20 per target
	@scripts/fuzz.sh $(SECONDS)

cgroups: ## Test limits by cgroups in a virtual machine
	@scripts/cgroups.sh

freebsd: ## Lint and link everything for FreeBSD
	@scripts/freebsd.sh

man: ## Check the manual pages and render them into target/man
	@scripts/man.sh
	@ls target/man

picture: ## Record the README's picture: colibri top in a real terminal
	@scripts/picture.sh

audit: ## Check licences, sources, duplicates, advisories, unused dependencies, lowest versions
	@scripts/audit.sh

miri: ## Run the tests of the pure crates under miri; needs a nightly toolchain
	@scripts/miri.sh

sanitize: ## Run the tests of crates with unsafe code under AddressSanitizer
	@scripts/sanitize.sh

bench: ## Benchmark Colibri against its alternatives: WHAT="spawn --rounds 100"; results in target/bench
	@scripts/bench.sh $(WHAT)

bench-compare: ## Benchmark two commits against each other: BASE=HEAD~1 NEW=(the working tree)
	@scripts/bench-compare.sh "$(BASE)" "$(NEW)"
