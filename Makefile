# Two commands for a machine with Python 3.11 or newer and make:
#   make draw    draw a first ticket, on embedded data
#   make test    run the tests
# Others: make check (format, lint, types), make bench (the benchmarks), make clean.
# Each makes the virtual environment .venv with what it needs.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: draw test check bench clean

draw: .venv/run.stamp
	$(BIN)/tombola draw digits-mlp --control reinit

test: .venv/dev.stamp
	$(BIN)/python -m pytest -n auto

# What CI runs beside the tests: format, lint, types.
check: .venv/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/run.stamp
	for part in masked_step guard loop startup machine sparse_step convolution inference sparse_networks ladder \
		first_touch two_seeds at_init report_page; do $(BIN)/python benchmarks/$$part.py || exit 1; done

clean:
	rm -rf .venv runs tombola-out build dist *.egg-info

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Tombola needs Python 3.11 or newer, but $(PYTHON) is " + sys.version.split()[0] + \
		": make PYTHON=python3.12 draw, say") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv

.venv/run.stamp: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/dev.stamp: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ .venv/run.stamp
