# Two commands do everything on a fresh machine: `make demo` and `make test`.

.PHONY: demo test install deb torture fuzz cgroups freebsd man picture audit miri bench bench-compare

demo: ## Set up, build, and see agents run in a sandbox
	@scripts/demo.sh

test: ## Set up and run everything that CI runs
	@scripts/test.sh

install: ## Build, and put programs, pages, completions and units under PREFIX (/usr/local), below DESTDIR
	@PREFIX=$(PREFIX) DESTDIR=$(DESTDIR) scripts/install.sh

deb: ## Build a Debian package of all programs
	@scripts/deb.sh

torture: ## Kill daemons, clients and shims under writers and count losses: ROUNDS=200, or SECONDS=60; SEED=
	@scripts/torture.sh $(if $(SECONDS),--seconds $(SECONDS),--rounds $(or $(ROUNDS),200)) $(if $(SEED),--seed $(SEED))

fuzz: ## Feed arbitrary bytes to the codec, the journal and glasspane: SECONDS=20 a target
	@scripts/fuzz.sh $(SECONDS)

cgroups: ## Hold agents to limits by cgroups, in a machine of its own
	@scripts/cgroups.sh

freebsd: ## Check and link everything for FreeBSD
	@scripts/freebsd.sh

man: ## Check the manual pages and render them into target/man
	@scripts/man.sh
	@ls target/man

picture: ## Record the README's picture anew: colibri top in a real terminal
	@scripts/picture.sh

audit: ## Licences, sources, duplicates, advisories, unused dependencies, lowest versions
	@scripts/audit.sh

miri: ## The tests of the pure crates under miri; needs a nightly toolchain with it
	@scripts/miri.sh

bench: ## Measure Colibri beside what one would use instead: WHAT="spawn --rounds 100"; results in target/bench
	@scripts/bench.sh $(WHAT)

bench-compare: ## Measure two commits against each other: BASE=HEAD~1 NEW=(the working tree)
	@scripts/bench-compare.sh "$(BASE)" "$(NEW)"
