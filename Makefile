# Two commands on a fresh machine: make quickstart, make test.
PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python
WORKERS ?= 2
# Two processes of one thread train twice as fast as one of two threads: these tensors are small.
# With a GPU: make quickstart PROCESSES=1 DEVICE=null
PROCESSES ?= $(shell $(PYTHON) -c "import os; print(min(2, os.cpu_count() or 1))")
DEVICE ?= cpu
LAUNCH = $(BIN)/torchrun --standalone --nproc_per_node $(PROCESSES)
EXP ?= quickstart
comma := ,
RUN_DIR ?= runs/$(subst $(comma),-,$(patsubst [%],%,$(EXP)))
# One pass has no use for an ensemble: members of the evaluation, more where there is noise
MEMBERS ?= $(if $(findstring marigold,$(EXP)),5,1)
ROOMS := $(or $(MARIGOLD_DATA),data)/rooms
PORT ?= 7860
# More overrides of the training, such as TRAIN="train.steps=60 train.decay_steps=60"
TRAIN ?=

# Threads that wait must not spin: on a machine with other work that costs far more than it gains.
export OMP_WAIT_POLICY := PASSIVE
# glibc keeps freed memory instead of giving it back and faulting it in again, page by page: rendering in two
# processes is 1.3 times as fast, encoding 1.3 times (start-up included). Nothing is lost where there is no glibc.
export MALLOC_TRIM_THRESHOLD_ := 1000000000
export MALLOC_MMAP_THRESHOLD_ := 1000000000

.PHONY: quickstart demo data test lint format constraints clean

quickstart: data
	$(LAUNCH) scripts/train.py +exp=$(EXP) device=$(DEVICE) run_dir=$(RUN_DIR) $(TRAIN)
	$(LAUNCH) scripts/eval.py dataset=rooms device=$(DEVICE) checkpoint=$(RUN_DIR)/final output=$(RUN_DIR)/eval sampler.ensemble_size=$(MEMBERS) panel.worst=2 panel.median=4
	$(RUN) scripts/compare_constant.py dataset=rooms results=$(RUN_DIR)/eval

# The quickstart's checkpoint on a page, with rooms that it has not seen to click on
demo: .venv/with_demo
	$(RUN) scripts/demo.py checkpoint=$(RUN_DIR)/final port=$(PORT) 'examples="$(ROOMS)/nyu/test/*/rgb_*.png"'

data: .venv/installed
	$(RUN) scripts/prepare.py dataset=rooms workers=$(WORKERS)
	$(RUN) scripts/prepare.py dataset=hypersim raw=$(ROOMS)/hypersim_raw out=$(ROOMS)/hypersim workers=$(WORKERS) prepare.official=null
	$(LAUNCH) scripts/cache_latents.py +exp=$(EXP) device=$(DEVICE) $(TRAIN)

test: .venv/developed
	$(BIN)/pytest -n $(WORKERS) --dist worksteal

lint: .venv/developed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/developed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

constraints: .venv/developed
	$(RUN) scripts/constraints.py

.venv/installed: pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/with_demo: .venv/installed
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo]'
	touch $@

.venv/developed: .venv/installed
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(ROOMS) $(RUN_DIR)
