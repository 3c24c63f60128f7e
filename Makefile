# The project's habits. `make help` lists them; each passes ARGS on to what it runs.

dpp := $(or $(CARGO_TARGET_DIR),target)/debug/dpp

.DEFAULT_GOAL := help
.PHONY: help dev test contract redocly chaos sim scale mutants check deny schema

help: ## Lists these.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

dev: ## Everything on this machine, until Ctrl-C: make dev ARGS='--port 8001'
	@.ci/setup dev
	cargo build
	@exec $(dpp) dev $(ARGS)

test: ## What CI runs: checks, then every test. One test: make test ARGS=name
	@.ci/setup
	@$(MAKE) --no-print-directory check
	.ci/with-ministack cargo test $(ARGS)
	$(if $(ARGS),,SEED=1 .ci/contract/run)

contract: ## The running server against its OpenAPI document, with tools of others: make contract SECS=600 SEED=7
	@.ci/setup
	cargo build
	SEED=$(SEED) .ci/contract/run $(or $(SECS),60)

redocly: ## What Redocly's linter finds in the OpenAPI document; needs Node.js
	cargo build
	$(dpp) openapi > target/openapi.json
	npx --yes @redocly/cli@2.77.0 lint --config .redocly.yaml target/openapi.json

chaos: ## Real processes killed, paused and cut off for a while: make chaos SECS=300 SEED=7
	@.ci/setup
	CHAOS_SECS=$(or $(SECS),60) CHAOS_SEED=$(SEED) cargo test --test it -- chaos --nocapture

sim: ## Random sequences of all that can happen, against a model: make sim SEED=7 STEPS=100000
	@.ci/setup
	SIM_SEED=$(SEED) SIM_STEPS=$(or $(STEPS),10000) cargo test --test it -- simulation --nocapture

scale: ## An audit of 1,000,000 runs, 20,000 stuck runs for one reaper, 1,000 waiting clients; prints times. ARGS=--release
	@.ci/setup
	cargo test $(ARGS) --test it scale -- --ignored --nocapture --test-threads=1

mutants: ## Breaks the money code in every small way and expects a test to fail each time: make mutants ARGS=--list
	@.ci/mutants $(ARGS)

# The order is by cost: what fails fast comes first. Clippy and rustdoc share the dependencies'
# metadata. `--lib --bins --tests` is every target there is; `--all-targets` would check the library
# a second time, as a unit-test build that this crate does not have. The documentation is for whoever
# works on the code, so it shows private items and may link to them.
check: ## Format, lints of both builds, documentation, and the dependencies' rules.
	cargo fmt --check
	cargo clippy --locked --lib --bins --tests -- -D warnings
	cargo clippy --locked --no-default-features --lib --bins -- -D warnings
	RUSTDOCFLAGS='-D warnings -A rustdoc::private-intra-doc-links' cargo doc --locked --no-deps --lib --document-private-items
	@if command -v cargo-deny >/dev/null; then $(MAKE) --no-print-directory deny; \
	else echo 'cargo-deny is not installed: `make deny` installs it and checks the dependencies'; fi

deny: ## Licences, bans and sources of the dependencies; installs cargo-deny (some minutes) if missing.
	@command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
	cargo deny --locked --config .deny.toml check bans licenses sources

schema: ## Rewrites src/store/schema.txt after a migration.
	@.ci/setup dev
	cargo build
	@.ci/schema $(dpp)
