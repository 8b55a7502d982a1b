# `make demo` and `make test` are all you need. Both set up $(VENV) first if it is missing or if pyproject.toml changed.
#
#   make demo [DIR=folder]          the main job
#   make test [ARGS="-k lease -x"]  the tests: all that is quick, and a sample of each slow kind; under 3 minutes
#   make proof [ARGS=...]           the rest of them: kills, servers, damage, thousands of simulated worlds, long runs
#   make coverage                   the quick tests again, and which lines and branches they leave out
#   make lint                       ruff, its formatter, mypy --strict
#   make docs                       the pages of docs/, as a site in site/
#   make venv                       only the environment, with everything that development needs
#   make clean                      remove the environment and whatever was built
#
# VENV=folder puts the environment elsewhere; PYTHON=program chooses the interpreter it is made from.

VENV ?= .venv
PYTHON ?=
DIR ?=
ARGS ?=
SITE ?= site
# Where this is set, each of the many programs that tests start compiles everything anew, in several times the time.
unexport PYTHONDONTWRITEBYTECODE
# One more than there are cores, since they wait for clocks and servers. ARGS=-n0 runs all of them in one process.
processes := --numprocesses $(shell expr $$(nproc) + 1)
PROCESSES := $(processes) --dist worksteal
# Those of a file share what they have set up.
PROOF_PROCESSES := $(processes) --dist loadscope

# Built by each install, where there is a compiler.
compiled := $(wildcard eventlog/slate/*.[ch] projections/*.c)

pythons := $(or $(PYTHON),python3.11 python3.12 python3.13 python3)
# Not compiled: Python does that when it first imports a module, and most of 8,000 files never are.
pip_install := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile

.PHONY: demo test proof coverage lint docs venv clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(VENV)/bin/ledgerq demo $(if $(DIR),"$(DIR)")

test: $(VENV)/.installed-test
	$(VENV)/bin/python -m pytest -m fast $(PROCESSES) $(ARGS)

proof: $(VENV)/.installed-test
	$(VENV)/bin/python -m pytest -m proof $(PROOF_PROCESSES) $(ARGS)

coverage: $(VENV)/.installed-test
	$(VENV)/bin/python -m pytest -m fast $(PROCESSES) --cov --cov-report term $(ARGS)

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The theme's advertisement for the time after MkDocs 1 is no warning of ours.
docs: export NO_MKDOCS_2_WARNING = true
# Not --quiet: --strict counts only the warnings that are shown.
docs: $(VENV)/.installed-docs
	$(VENV)/bin/mkdocs build --strict --clean --site-dir $(SITE)
	@echo "the pages are in $(SITE)"

venv: $(VENV)/.installed-dev

clean:
	rm -rf .venv build dist site *.egg-info .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -path ./.git -prune -o -name '*.abi3.so' -exec rm -f {} +
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps. Larger sets of extras hold the smaller ones, so their stamps are set along with their own.

$(VENV)/.installed: pyproject.toml $(compiled) | $(VENV)/.created
	@echo "installing ledgerq into $(VENV)"
	@$(pip_install) --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml $(compiled) | $(VENV)/.created
	@echo "installing ledgerq and its test tools into $(VENV)"
	@$(pip_install) --editable '.[test]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-dev: pyproject.toml $(compiled) | $(VENV)/.created
	@echo "installing ledgerq and its development tools into $(VENV)"
	@$(pip_install) --editable '.[dev]'
	@touch $(VENV)/.installed $(VENV)/.installed-test $@

$(VENV)/.installed-docs: pyproject.toml | $(VENV)/.created
	@echo "installing what builds the pages into $(VENV)"
	@$(pip_install) --editable '.[docs]'
	@touch $(VENV)/.installed $@

# An environment with a working pip: the one that is there, or a new one. Debian ships Python without ensurepip, and then
# `-m venv` fails; what is left are the outer pip, which can install into the new environment, or virtualenv.
$(VENV)/.created:
	@for python in $(pythons); do \
	    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
	    python=; \
	done; \
	[ -n "$$python" ] || { echo "make: no Python 3.11 or newer here (tried: $(pythons)); name one with PYTHON=" >&2; exit 1; }; \
	works() { "$(VENV)/bin/python" -m pip --version; }; \
	by_venv() { "$$python" -m venv "$(VENV)" && works; }; \
	by_outer_pip() { "$$python" -m venv --without-pip "$(VENV)" \
	    && "$$python" -m pip --python "$(VENV)/bin/python" install pip && works; }; \
	by_virtualenv() { "$$python" -m pip install --target "$(VENV)/.virtualenv" virtualenv \
	    && PYTHONPATH="$(VENV)/.virtualenv" "$$python" -m virtualenv "$(VENV)" && works; }; \
	{ works || by_venv || by_outer_pip || by_virtualenv; } >/dev/null 2>&1 || { \
	    echo "make: $$python can't make a virtual environment in $(VENV); on Debian: apt-get install python3-venv" >&2; exit 1; }
	@touch $@
