# Everything a fresh machine needs is Python 3.11+ and make; the environment is made in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check docs env clean

demo: env
	$(BIN)/cefam demo

test: env check
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

docs: env
	$(BIN)/python docs/reference.py build/docs

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

env: .venv/.made

# Bytecode is compiled once here; otherwise every process would compile torch and Lightning anew.
.venv/.made: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q uv
	$(BIN)/uv pip install -q --compile-bytecode -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
