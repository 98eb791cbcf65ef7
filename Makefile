# Ringhorn's commands. Everything that is installed goes into $(VENV), never into the system.
#
#   make demo       build the wheel and serve the example Django project   (PORT=8000 PYTHON=python3)
#   make test       everything that must pass before a change lands        (PYTEST_ARGS='-k name')
#   make pythons    the Python tests on each of $(PYTHONS) found here
#   make check      formatting and lints only
#   make wheel      the release wheel, installed into $(VENV)
#   make loadtest   the load generator, ringhorn-loadtest
#   make compare    this server and others on all workloads, into docs/  (PEERS=.venv-peers)
#   make clean      remove what was built and installed

PYTHON ?= python3
VENV ?= .venv
PORT ?= 8000
PYTHONS ?= 3.10 3.11 3.12 3.13
PYTEST_ARGS ?=
# What the wheel is built with: release, or quick for the edit, build, test round.
PROFILE ?= release

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

bin := $(abspath $(VENV))/bin
example := examples/django

# The interpreter that PYTHON names now. A venv made from another one is made again.
python_id := $(shell $(PYTHON) -c 'import sys; print(*sys.version_info[:3], sys.base_prefix)' 2>/dev/null)
wheel_sources := Cargo.toml Cargo.lock pyproject.toml README.md $(shell find src python -type f -not -name '*.pyc')

.PHONY: help demo test check lint rust-test bench-test loadtest loadtest-test compare pytest wheel pythons clean FORCE

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

# --- the venv: a stamp for each thing that is installed there, so that a second run is quick

ifneq ($(python_id),$(shell cat $(VENV)/.python 2>/dev/null))
$(VENV)/.python: FORCE
endif
$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "error: $(PYTHON) is missing or older than Python 3.10"; \
	    echo "  hint: name another one, as in: make $(or $(MAKECMDGOALS),demo) PYTHON=python3.12"; exit 1; } >&2
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "  hint: on Debian and Ubuntu the package python3-venv is needed" >&2; exit 1; }
	echo '$(python_id)' > $@

$(VENV)/.maturin: $(VENV)/.python pyproject.toml
	$(bin)/python -m pip install --quiet 'maturin>=1.9.4,<2'
	touch $@

# A wheel of another profile is not the one that is asked for.
ifneq ($(PROFILE),$(shell cat $(VENV)/.wheel 2>/dev/null))
$(VENV)/.wheel: FORCE
endif
$(VENV)/.wheel: $(VENV)/.maturin $(wheel_sources)
	@command -v cargo >/dev/null || \
	  { echo "error: cargo is missing"; echo "  hint: install Rust from https://rustup.rs"; exit 1; } >&2
	rm -rf $(VENV)/wheels
	$(bin)/maturin build --profile $(PROFILE) --interpreter $(bin)/python --out $(VENV)/wheels
	$(bin)/python -m pip install --quiet --no-deps --force-reinstall $(VENV)/wheels/*.whl
	echo '$(PROFILE)' > $@

$(VENV)/.example: $(VENV)/.python $(example)/requirements.txt
	$(bin)/python -m pip install --quiet -r $(example)/requirements.txt
	touch $@

$(VENV)/.tests: $(VENV)/.python tests/python/requirements.txt $(example)/requirements.txt
	$(bin)/python -m pip install --quiet -r tests/python/requirements.txt
	touch $@

FORCE:

# --- what people call

wheel: $(VENV)/.wheel
	@ls $(VENV)/wheels/*.whl

demo: $(VENV)/.wheel $(VENV)/.example
	@echo
	@echo "  The example Django project: http://127.0.0.1:$(PORT)/"
	@echo "  Its admin:                  http://127.0.0.1:$(PORT)/admin/   (user admin, password admin)"
	@echo "  Stop it with Ctrl-C."
	@echo
	@cd $(example) && DEMO=1 exec $(bin)/ringhorn --bind 127.0.0.1:$(PORT) mysite.wsgi

check: lint

lint: $(VENV)/.tests
	$(bin)/ruff format --check
	$(bin)/ruff check
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --features simulation --bench request --bench instructions -- -D warnings
	PYO3_PYTHON=$(bin)/python cargo clippy --locked --features simulation,python --bench request --bench instructions -- -D warnings
	PYO3_PYTHON=$(bin)/python cargo clippy --locked --all-targets --features python,tower -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --quiet --locked --no-deps --features tower
	cargo fmt --check --manifest-path loadtest/Cargo.toml
	cargo clippy --all-targets --manifest-path loadtest/Cargo.toml -- -D warnings

rust-test:
	cargo test --locked --features tower,top

# Every benchmark once, to see that it still runs. Building environs needs an interpreter in the program, and so a Python that
# comes with its library.
bench-test: $(VENV)/.python
	@library="$$($(bin)/python -c 'import sysconfig as s; print(s.get_config_var("LIBDIR") + "/" + s.get_config_var("LDLIBRARY"))')"; \
	if [[ $$library == *.so* && -e $$library ]]; then \
	  PYO3_PYTHON=$(bin)/python LD_LIBRARY_PATH="$${library%/*}$${LD_LIBRARY_PATH:+:$$LD_LIBRARY_PATH}" \
	    cargo test --locked --features simulation,python --bench request --bench instructions; \
	else \
	  echo "warning: $(PYTHON) has no shared library ($$library): the bench of environs is left out" >&2; \
	  cargo test --locked --features simulation --bench request --bench instructions; \
	fi

# The load generator is a workspace of its own, so that the server's build knows nothing of its dependencies. Not --locked: its
# lock has the server's dependencies for a bench, and whoever changes those shall not have to think of it.
loadtest:
	cargo build --release --manifest-path loadtest/Cargo.toml

# All servers on this machine, into docs/. PEERS is a venv that `loadtest/compare --install` has made.
PEERS ?= .venv-peers
COMPARE_ARGS ?=
compare: $(VENV)/.wheel loadtest
	@if [ -e loadtest/native-peers/Cargo.toml ]; then \
	  cargo build --release --locked --bin ringhorn-demo && cargo bench --locked --no-run --bench floor && \
	  cargo build --release --manifest-path loadtest/native-peers/Cargo.toml || \
	  echo "warning: native services could not be built; their rows will say so" >&2; fi
	$(bin)/python loadtest/compare --peers $(PEERS) --wheel $(VENV)/wheels/*.whl --docs --marks $(COMPARE_ARGS)

loadtest-test:
	cargo test --manifest-path loadtest/Cargo.toml
	cargo test --manifest-path loadtest/Cargo.toml --bench io_engines

pytest: $(VENV)/.wheel $(VENV)/.tests
	$(bin)/python -m pytest $(PYTEST_ARGS)

# One after the other whatever -j says: the cheap answers first, and one use of the build folder at a time.
test:
	$(MAKE) --no-print-directory lint
	$(MAKE) --no-print-directory rust-test
	$(MAKE) --no-print-directory bench-test
	$(MAKE) --no-print-directory loadtest-test
	$(MAKE) --no-print-directory pytest

# An interpreter is found on PATH, or among those that pyenv keeps. One that is missing is named at the end.
pythons:
	@tried=; missing=; failed=; \
	for version in $(PYTHONS); do \
	  python=; \
	  for candidate in python$$version "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/$$version.*/bin/python; do \
	    if "$$candidate" -c '' 2>/dev/null; then python=$$candidate; break; fi; \
	  done; \
	  if [ -z "$$python" ]; then missing="$$missing $$version"; continue; fi; \
	  echo "=== Python $$version: $$python"; \
	  if $(MAKE) --no-print-directory pytest VENV=.venv-$$version PYTHON="$$python"; \
	  then tried="$$tried $$version"; else failed="$$failed $$version"; fi; \
	done; \
	echo "passed:$${tried:- none}  failed:$${failed:- none}  not found:$${missing:- none}"; \
	[ -z "$$failed" ] && [ -n "$$tried" ]

clean:
	cargo clean
	cargo clean --manifest-path loadtest/Cargo.toml
	rm -rf .venv .venv-3.* dist .pytest_cache $(example)/db.sqlite3*
	find python tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
