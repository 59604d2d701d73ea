# What people type here. `make help` lists it.
#
# Set CARGO_TARGET_DIR to keep build results elsewhere, STAGENET_CACHE to keep tools and the test control plane elsewhere
# than in ~/.cache/stagenet. The kernel labs need root; they work in namespaces and leave the machine's network alone.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

export STAGENET_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/stagenet
export CARGO_TARGET_DIR ?= $(CURDIR)/target
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

deny := $(STAGENET_CACHE)/$(shell sed -n 's/^cargo_deny=/cargo-deny-/p' hack/install-deps.sh)/bin/cargo-deny

.PHONY: help
help: ## Lists the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

.PHONY: build
build: ## Builds the release binary
	hack/install-deps.sh build
	cargo build --locked --release
	@echo "built $(CARGO_TARGET_DIR)/release/stagenet"

.PHONY: demo
demo: ## Shows the seed experiment with real servers, in namespaces; KEEP=1 leaves it up
	hack/install-deps.sh build demo
	cargo build --locked --quiet
	STAGENET=$(CARGO_TARGET_DIR)/debug/stagenet KEEP=$(KEEP) demo/run

.PHONY: test
test: deps fmt-check lint demo ## Proves everything: formatting, lints, licences, the demo, all tests with kernel and API labs
	tests/testbed/build.sh
	tests/testbed/judges.sh
	tests/testbed/kubevirt.sh
	cargo test --locked

.PHONY: test-fast
test-fast: ## Runs the tests without the labs on a real API server
	hack/install-deps.sh build test
	STAGENET_SKIP_API_LABS=1 cargo test --locked

.PHONY: bench
bench: bench-scale bench-standing bench-packets bench-kube-proxy bench-cluster ## Measures everything that docs/performance.md has a table of; takes half an hour

.PHONY: bench-scale
bench-scale: ## Measures the agent beside the bare tools, at 1 to 10 000 mappings
	hack/install-deps.sh build test
	cargo bench --locked --bench scale

.PHONY: bench-standing
bench-standing: ## Measures an idle agent with 10 000 mappings, and how fast flows end
	hack/install-deps.sh build test
	cargo bench --locked --bench standing

.PHONY: bench-packets
bench-packets: ## Measures what packets and connections pay on their way through a gateway
	hack/install-deps.sh build test
	cargo bench --locked --bench packets

.PHONY: bench-kube-proxy
bench-kube-proxy: ## Measures the agent beside kube-proxy, on a real API server
	hack/install-deps.sh build test
	cargo bench --locked --bench kube_proxy

.PHONY: bench-cluster
bench-cluster: ## Measures controller and agents with ten thousand mappings and five hundred nodes, on a real API server
	hack/install-deps.sh build test
	cargo bench --locked --bench cluster

.PHONY: fmt
fmt: ## Formats the code
	cargo fmt

.PHONY: fmt-check
fmt-check:
	cargo fmt --check

.PHONY: lint
lint: deps ## Runs clippy, cargo-deny and shellcheck, with warnings denied
	cargo clippy --locked --all-targets -- -D warnings
	$(deny) check bans licenses sources
	shellcheck -x hack/*.sh tests/testbed/*.sh demo/run .ci/run

.PHONY: deps
deps: ## Installs what is missing: Debian packages with apt, cargo-deny into the cache
	hack/install-deps.sh
