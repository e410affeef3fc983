# Everything sets itself up: `make demo` and `make test` work on a fresh clone with Python >= 3.11, make and pip.
# Each Python has a virtual environment of its own under .venv/, made anew when pyproject.toml changes.

PYTHONS := $(shell sh tests/pythons.sh)
FIRST := $(firstword $(PYTHONS))
ifeq ($(FIRST),)
$(error no Python of 3.11 or later was found; install one, or set PYTHON=/path/to/python)
endif
# A Python's path with its slashes as '@', so that it can be part of a target's name.
name = $(subst /,@,$(1))
PIP := .venv/pip
DEMO := .venv/demo
LINT := .venv/lint
BENCH := .venv/bench
DOCS := .venv/docs
DIST := .venv/dist
# Processes that the tests are spread over: one more than this has processors, as many tests wait for something.
WORKERS := $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN) + 1 )))

# Bytecode is written even where the user's own environment forbids it: many tests start programs.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test lint types docs dist bench chaos clean venvs $(foreach python,$(PYTHONS),test-$(call name,$(python)))

demo: $(DEMO)/ready
	$(DEMO)/bin/python examples/demo.py $(if $(LIVE),--live)

test: $(foreach python,$(PYTHONS),test-$(call name,$(python)))

venvs: $(foreach python,$(PYTHONS),.venv/test$(call name,$(python))/ready) $(LINT)/ready $(DEMO)/ready $(DOCS)/ready

define suite
.venv/test$(call name,$(1))/ready: pyproject.toml | $(PIP)/ready
	$$(call make_venv,$(1),.venv/test$(call name,$(1)),-e . --group test)
test-$(call name,$(1)): .venv/test$(call name,$(1))/ready
	$$(call run_tests,.venv/test$(call name,$(1)))
endef

run_tests = sh tests/suite.sh $(1)/bin/python $(WORKERS) $(ARGS)

# Packages are compiled when they are first imported, as most of their modules never are.
make_venv = rm -rf $(2) && $(1) -m venv --without-pip $(2) \
	&& $(PIP)/bin/python -m pip --python $(2)/bin/python install --quiet --no-compile $(3) && touch $(2)/ready

$(foreach python,$(PYTHONS),$(eval $(call suite,$(python))))

lint: $(LINT)/ready
	$(LINT)/bin/ruff check .
	$(LINT)/bin/ruff format --check .

types: $(LINT)/ready
	$(LINT)/bin/mypy --strict src examples tests/typing
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(LINT)/bin/pyright --pythonpath $(LINT)/bin/python

# The documentation as a site, in .site/html. A link that leads nowhere is an error.
docs: $(DOCS)/ready
	PATH="$(CURDIR)/$(DOCS)/bin:$$PATH" $(DOCS)/bin/python docs/build.py

# The wheel and the sdist: built, checked, and installed alone, where the command has to work.
dist: $(DIST)/ready
	rm -rf dist && $(DIST)/bin/python -m build --quiet
	$(DIST)/bin/python -m twine check --strict dist/*
	sh tests/installed.sh $(FIRST) dist/*.tar.gz
	for python in $(PYTHONS); do sh tests/installed.sh "$$python" dist/*.whl || exit 1; done

bench: $(BENCH)/ready
	$(BENCH)/bin/python -m tests.benchmarks

# 20 minutes of attacks; ARGS="--minutes 60", ARGS=--slice, or ARGS="fuzz kills" for some of the programs.
chaos: .venv/test$(call name,$(FIRST))/ready
	.venv/test$(call name,$(FIRST))/bin/python -m tests.chaos $(ARGS)

# One pip for all environments, of a version that knows dependency groups.
$(PIP)/ready:
	rm -rf $(PIP) && $(FIRST) -m venv $(PIP) && $(PIP)/bin/python -m pip install --quiet --upgrade pip && touch $@

$(DEMO)/ready: pyproject.toml | $(PIP)/ready
	$(call make_venv,$(FIRST),$(DEMO),-e . --group demo)

$(LINT)/ready: pyproject.toml | $(PIP)/ready
	$(call make_venv,$(FIRST),$(LINT),-e . --group lint --group test)

$(DOCS)/ready: pyproject.toml | $(PIP)/ready
	$(call make_venv,$(FIRST),$(DOCS),--group docs)

$(DIST)/ready: pyproject.toml | $(PIP)/ready
	$(call make_venv,$(FIRST),$(DIST),--group dist)

$(BENCH)/ready: pyproject.toml | $(PIP)/ready
	$(call make_venv,$(FIRST),$(BENCH),-e . --group test --group bench)

clean:
	rm -rf .venv .site .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
