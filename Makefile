# Commands for people; CI calls the same (.ci/run). Each installs what it misses on Debian or Ubuntu; given are Rust, a C compiler and make.

.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
CARGO := cargo
# A folder of its own: the next plain build would put a dynamic mosaic-init in the place of the static one.
INIT_TARGET := target/init
# For an engine whose builds reach the network another way: DOCKER_BUILD_FLAGS="--network host".
DOCKER_BUILD_FLAGS ?=
FUZZ_SECONDS ?= 600
FUZZ_TARGETS ?= record gates_file result progress link tree_reader
INIT := $(INIT_TARGET)/release/mosaic-init

.PHONY: help run test build image image-sandbox image-server watch lint lint-fmt lint-clippy lint-doc lint-deny fmt crds bench fuzz clean

help: ## Show these lines
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: build ## Show the whole way once: a sample repository, an agent, gates, a verified push
	@.ci/need git
	target/debug/mosaic demo

test: build ## Run all tests; the last line counts them
	@.ci/need git python3 openssl
	@# The test build puts a dynamic mosaic-init beside mosaic; the static one goes back, however the tests end.
	@MOSAIC_INIT="$(CURDIR)/$(INIT)" tests/run.sh; status=$$?; install -m 0755 $(INIT) target/debug/mosaic-init; exit $$status

build: ## Build mosaic, and the static mosaic-init beside it, into target/debug
	$(CARGO) build --locked --bin mosaic
	$(CARGO) rustc --locked --release --bin mosaic-init --no-default-features --target-dir $(INIT_TARGET) -- -C target-feature=+crt-static
	@install -m 0755 $(INIT) target/debug/mosaic-init

watch: ## Build anew whenever a source file changes
	@.ci/need inotifywait
	@while :; do \
		$(MAKE) build || true; \
		inotifywait -qq -r -e modify,create,delete,move src Cargo.toml || exit 1; \
	done

lint: lint-fmt lint-clippy lint-doc lint-deny ## Check format, lints, documentation, licences and sources

lint-fmt:
	@.ci/need rustfmt
	$(CARGO) fmt --check

lint-clippy:
	@.ci/need clippy
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --bin mosaic-init --no-default-features -- -D warnings

lint-doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps

lint-deny:
	@.ci/need cargo-deny
	$(CARGO) deny --locked check --hide-inclusion-graph licenses bans sources
	@if timeout 60 $(CARGO) deny fetch db >/dev/null 2>&1; then \
		$(CARGO) deny --locked check --disable-fetch advisories; \
	else \
		echo "SKIPPED advisories: their database cannot be reached from here"; \
	fi

fmt: ## Format all sources
	@.ci/need rustfmt
	$(CARGO) fmt

image: image-sandbox image-server ## Build with Docker the default image of sandboxes, mosaic-sandbox:latest, and the server's, mosaic:latest

image-sandbox:
	@.ci/need docker
	docker build $(DOCKER_BUILD_FLAGS) --tag mosaic-sandbox:latest --file images/sandbox.Dockerfile images

image-server:
	@.ci/need docker
	docker build $(DOCKER_BUILD_FLAGS) --tag mosaic:latest .

crds: ## Print the custom resource definitions into crds/ anew
	UPDATE_CRDS=1 $(CARGO) test --locked --test it checked_in_definitions_equal_the_printed_ones

bench: build ## Measure; prints ratios with both sides measured in one run (ONLY="workspace snapshot sandbox docker controller lifecycle kube pods memory valkey")
	@.ci/need git bwrap
	MOSAIC_INIT="$(CURDIR)/$(INIT)" $(CARGO) bench --locked --bench ratios -- $(ONLY)

fuzz: ## Feed random input to what reads hostile bytes (FUZZ_SECONDS=600 for each; FUZZ_TARGETS="record link")
	@.ci/need git cargo-fuzz
	@# Without the address sanitizer: the C libraries within are built without it, and all code of ours on these paths is safe Rust.
	@for target in $(FUZZ_TARGETS); do \
		mkdir -p fuzz/corpus/$$target; \
		$(CARGO) +nightly fuzz run --sanitizer none $$target fuzz/corpus/$$target fuzz/seeds/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -max_len=65536 -rss_limit_mb=4096 -print_final_stats=1 || exit 1; \
	done

clean: ## Remove everything that was built
	$(CARGO) clean
