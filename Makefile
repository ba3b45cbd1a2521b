# Everything on a machine with Python 3.11 and nothing else: each target makes .venv and installs what it needs first.
#
#   make demo      the whole method on the bundled task, offline once installed
#   make test      the test suite
#   make check     ruff and mypy
#   make test-page the pages of `saywhy serve` and of reports in a real browser: needs chromium on the PATH
#   make test-all  also the tests that need a browser, a cluster, a GPU or minutes; they skip where that is absent
#   make clean     remove what the targets made, .venv included; runs/ stays
#
# Another Python: make PYTHON=python3.12 demo. Another folder for a run: make DEMO_ARGS="-o runs/mine" demo.
# More cores: make TEST_WORKERS=8 test.

PYTHON = python3
VENV = .venv
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check install -q -c constraints.txt
DEMO_ARGS =
TEST_ARGS =
# Tests run side by side, each in one thread.
TEST_WORKERS = 2

all: test

demo: $(VENV)/installed
	$(VENV)/bin/saywhy demo $(DEMO_ARGS)

test: $(VENV)/installed-dev
	$(VENV)/bin/python -m pytest -n $(TEST_WORKERS) --dist worksteal -m "not soak" $(TEST_ARGS)

test-page: $(VENV)/installed-browser
	$(VENV)/bin/python -m pytest tests/test_page.py tests/test_report_page.py tests/test_study_page.py -rs $(TEST_ARGS)

test-all: $(VENV)/installed-browser
	$(VENV)/bin/python -m pytest -rs $(TEST_ARGS)

check: $(VENV)/installed-dev
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m mypy -p saywhy
	MYPYPATH=src:benchmarks $(VENV)/bin/python -m mypy benchmarks/*.py

install: $(VENV)/installed-dev

clean:
	rm -rf $(VENV) build dist src/saywhy.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are younger than what they depend on until that changes, so that nothing is installed twice.
$(VENV)/installed: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing saywhy into $(VENV); the first time takes some minutes"
	$(PIP) -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing saywhy and its tools into $(VENV); the first time takes some minutes"
	$(PIP) -e ".[dev]"
	touch $(VENV)/installed $@

# Drives the chromium that the machine has; none is fetched.
$(VENV)/installed-browser: $(VENV)/installed-dev
	$(PIP) -e ".[dev,browser]"
	touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "saywhy needs Python 3.11 or newer: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

.PHONY: all demo test test-page test-all check install clean
