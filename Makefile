# Everything a fresh machine needs is Python 3.11+ and make; the environment is made in .venv.
PYTHON ?= python3
BIN := .venv/bin
OLDEST := .venv-oldest
PYTEST = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2
# The mathematics, from files that start no command.
QUICK := tests/test_metrics.py tests/test_evaluator.py tests/test_golden.py tests/test_grad_cam.py tests/test_translator.py \
  tests/test_schedule.py tests/test_concepts.py tests/test_views.py cefam/metrics cefam/settings.py cefam/pairs.py cefam/errors.py

.PHONY: demo test soak quick test-oldest check docs env clean

demo: env
	$(BIN)/cefam demo

# In the order of the files: the long ones must not come last, where one process would wait for the other.
test: env check
	$(PYTEST) --dist loadfile --no-loadscope-reorder

# Everything, with the tests that `make test` leaves out: every verb is killed twenty times, every verb stopped at many moments. Hours.
soak: env
	CEFAM_SOAK=1 CEFAM_KILLS=$${CEFAM_KILLS:-20} $(PYTEST)

quick: env
	$(PYTEST) $(QUICK)

# The lowest versions that pyproject.toml allows.
test-oldest: $(OLDEST)/.made
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n 2 --dist loadfile

docs: env
	$(BIN)/python docs/site.py build/docs

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/check-jsonschema -q --builtin-schema vendor.github-workflows .github/workflows/ci.yml
	if command -v actionlint > /dev/null; then actionlint; fi

env: .venv/.made

# Bytecode is compiled once here; otherwise every process would compile torch and Lightning anew.
.venv/.made: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q uv
	$(BIN)/uv pip install -q --compile-bytecode -c constraints.txt -e ".[dev]"
	touch $@

$(OLDEST)/.made: pyproject.toml
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install -q uv
	VIRTUAL_ENV=$(OLDEST) $(OLDEST)/bin/uv pip install -q --compile-bytecode --resolution lowest-direct -e ".[dev]"
	touch $@

clean:
	rm -rf .venv $(OLDEST) build dist *.egg-info
