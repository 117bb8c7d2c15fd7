# Everything a person or a machine runs on this tree. `make help` lists it.
#
# What is built or installed for tests lives in $(CACHE), outside the tree: it survives a fresh clone, and two clones share it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CACHE := $(or $(HOLDFAST_CACHE),$(HOME)/.cache/holdfast)
export HOLDFAST_CACHE := $(CACHE)
export PATH := $(CACHE)/tools/bin:$(PATH)

# Checks build into the cache; `make build` and `make demo` build into ./target, where people look for a binary.
CHECK_TARGET := $(or $(CARGO_TARGET_DIR),$(CACHE)/target)
CHECK := CARGO_TARGET_DIR=$(CHECK_TARGET)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## install what the tests need (quick when it is there)
	@scripts/setup.sh

.PHONY: bench-setup
bench-setup: setup ## install the newest restic for the comparison
	@scripts/bench-setup.sh

.PHONY: test
test: ## what CI runs: setup, format, lints, dependencies, every test
	@scripts/steps.sh setup fmt lint deny verify-docs doctest unit

.PHONY: fmt
fmt: ## check the format
	@cargo fmt --all --check

.PHONY: lint
lint: ## compile everything with lints as errors
	@$(CHECK) cargo clippy --locked --workspace --all-targets --all-features -- -D warnings

.PHONY: deny
deny: ## licences, banned and duplicate dependencies, where they come from
	@cargo deny --log-level error check bans licenses sources

# One feature set for lints and tests: fail points exist in what is tested, never in what `make build` makes.
.PHONY: unit
unit: ## unit, conformance and end-to-end tests against real servers
	@$(CHECK) cargo nextest run --locked --workspace --all-features --profile ci

.PHONY: doctest
doctest: ## the examples in the documentation of the libraries
	@$(CHECK) cargo test --locked --workspace --all-features --doc --quiet

.PHONY: verify-docs
verify-docs: ## the documentation builds without a broken link; pages, links and examples are tests of `unit`
	@$(CHECK) RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --all-features --no-deps --quiet

.PHONY: build
build: ## the three programs, optimised, in target/release
	@cargo build --locked --release --bins

.PHONY: demo
demo: ## a whole fleet in one process; Ctrl-C ends it, ARGS=--once makes it stop by itself
	@CARGO_TARGET_DIR=target cargo build --locked --release -p holdfast --bin holdfast
	@target/release/holdfast demo $(ARGS)

.PHONY: kills
kills: setup ## kill agent and controller during backups, KILLS times (40)
	@$(CHECK) HOLDFAST_KILLS=$(or $(KILLS),40) cargo nextest run --locked --workspace --all-features \
	  --no-capture -E 'test(kills::)'

.PHONY: unattended
unattended: setup ## leave a fleet alone for SECONDS (600) while agent and controller are killed at random
	@$(CHECK) HOLDFAST_UNATTENDED=$(or $(SECONDS),600) cargo nextest run --locked --workspace --all-features \
	  --no-capture -E 'test(unattended::)'

.PHONY: fuzz
fuzz: ## feed every parser of foreign bytes damaged input, FUZZ_SECONDS for each (60), from SEED (another each time)
	@$(CHECK) HOLDFAST_FUZZ_SECONDS=$(or $(FUZZ_SECONDS),60) HOLDFAST_FUZZ_SEED=$(or $(SEED),$$RANDOM) \
	  cargo nextest run --locked --workspace --all-features --no-capture --profile fuzz \
	  -E 'package(holdfast-fuzz) | test(a_damaged_archive) | test(a_damaged_export)'

# Needs root, loop devices and ext4: not part of `make test`.
.PHONY: power-cuts
power-cuts: ## cut the power of the controller's state, CUTS times (100)
	@$(CHECK) cargo build --locked --package holdfast-controller --example state_torture
	@scripts/power-cuts.sh $(or $(CUTS),100) $(CHECK_TARGET)/debug/examples/state_torture

.PHONY: bench
bench: bench-setup build ## every row of the comparison with restic, in one run
	@benches/compare.sh
