# Two commands on a fresh machine: make quickstart, make test.
PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python
WORKERS ?= 2
EXP ?= quickstart
RUN_DIR ?= runs/quickstart
# More overrides of the training, such as TRAIN="train.steps=60 train.decay_steps=60"
TRAIN ?=

# Threads that wait must not spin: on a machine with other work that costs far more than it gains.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: quickstart data test lint format clean

quickstart: data
	$(RUN) scripts/train.py +exp=$(EXP) run_dir=$(RUN_DIR) $(TRAIN)
	$(RUN) scripts/eval.py dataset=rooms checkpoint=$(RUN_DIR)/final output=$(RUN_DIR)/eval sampler.ensemble_size=5 panel.worst=2 panel.median=4
	$(RUN) scripts/compare_constant.py dataset=rooms results=$(RUN_DIR)/eval

data: .venv/installed
	$(RUN) scripts/prepare.py dataset=rooms out=data/rooms workers=$(WORKERS)
	$(RUN) scripts/prepare.py dataset=hypersim raw=data/rooms/hypersim_raw out=data/rooms/hypersim workers=$(WORKERS) prepare.official=null
	$(RUN) scripts/cache_latents.py +exp=$(EXP)

test: .venv/installed
	$(BIN)/pytest

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/installed: pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf data/rooms runs/quickstart
