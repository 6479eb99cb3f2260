# make run    the main job on the embedded default (or EXPERIMENT=path/to/your.yaml)
# make test   everything CI checks
# make ui     the Dagster UI on what was run, http://127.0.0.1:3000
# make explore  circuits and features in the browser, http://127.0.0.1:3001
# Each makes the environment first if it is missing or older than requirements.lock.

PYTHON ?= python3
VENV ?= .venv
EXPERIMENT ?= experiments/testbed.yaml
PORT ?= 3000
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CORPUS := data/testbed

.PHONY: run test ui explore corpus env clean-artifacts

run: $(READY) corpus
	$(BIN)/python -m pipelines.run $(EXPERIMENT)

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu"

ui: $(READY)
	$(BIN)/python -m pipelines.ui --port $(PORT)

explore: $(READY)
	$(BIN)/python -m explorer

corpus: $(READY)
	$(BIN)/python -m testbed.generate --out $(CORPUS)

env: $(READY)

# The lock holds exact versions of everything; --no-deps keeps the project from adding others.
$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

clean-artifacts:
	rm -rf artifacts .dagster
