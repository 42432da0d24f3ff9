# Two commands for users: make demo, make test. Everything else is for those who change the house.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow check bench readme system clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(READY)  ## a synthetic dump to a tuned model and a held-out number, on CPU, in minutes
	PATH="$(CURDIR)/$(BIN):$$PATH" sh recipes/demo.sh demo

test: $(READY)  ## all tests but the slow ones; every skip is printed with its reason
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(READY)  ## the slow tests too, and those on a Ray cluster
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[ray]'
	$(BIN)/python -m pytest -n 2 --dist loadfile -m ''

check: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)  ## every benchmark and one table of them; some of them: make bench ONLY=convert
	$(BIN)/python benchmarks/table.py $(ONLY)

readme: $(READY)  ## the README's outputs and its table of real dumps, written anew
	$(BIN)/python docs/dump_table.py --write
	$(BIN)/python docs/console.py README.md --write

system:  ## what pip cannot install: Chromium for the page tests, PostgreSQL for the store tests (root or sudo)
	@if command -v apt-get >/dev/null; then \
	  SUDO=$$( [ $$(id -u) = 0 ] || echo sudo ); \
	  $$SUDO apt-get update -qq && $$SUDO env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium postgresql >/dev/null; \
	elif command -v dnf >/dev/null; then sudo dnf install -y chromium postgresql-server; \
	elif command -v brew >/dev/null; then brew install --cask chromium && brew install postgresql; \
	else echo "install Chromium and PostgreSQL by hand; tests that need them say so and skip"; fi

clean:  ## remove what make made
	rm -rf $(VENV) demo .pytest_cache .ruff_cache .mypy_cache build dist
