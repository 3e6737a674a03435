# make demo   train DCGAN on the embedded data set and look at it
# make test   everything that CI runs
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# the demo's command line, and where it leaves its run
DEMO_OUT  ?= runs/demo
DEMO_ARGS ?= dcgan --data fashion-mnist-10k --width 32 --steps 2800

# What an installed copy depends on: an edited Python file needs no new install, these do.
SOURCES := pyproject.toml setup.py constraints.txt $(wildcard csrc/*/*)
CPP     := $(wildcard csrc/*/*.cpp csrc/*/*.h csrc/*/*.hpp csrc/*/*.cu csrc/*/*.cuh)
# The environment's own tools first: its ninja is what setup.py finds.
WITH    := PATH="$(CURDIR)/$(BIN):$$PATH"
# Built without isolation, so that the build's tools are pinned as well, and only C++ that changed is compiled again. The
# kernels are compiled with the headers of the torch that is there: it comes first.
TOOLS   := setuptools pybind11 ninja torch
INSTALL := $(WITH) $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt

.PHONY: help demo test lint format pytest bench learning clean

help:
	@echo "make demo      train DCGAN on the embedded data set (about two minutes on a CPU), into $(DEMO_OUT)"
	@echo "make test      lint, types, import rules and all tests"
	@echo "make lint      the first three of these alone"
	@echo "make format    put Python and C++ into the one style"
	@echo "make bench     time every op and whole iterations against stock PyTorch, on an idle machine, into docs/results"
	@echo "make learning  train every recipe for real and judge what it learned"
	@echo "make clean     remove the environment and everything that was built"
	@echo "PYTHON=python3.12 chooses the Python, 3.11 or newer"

demo: $(VENV)/.installed
	$(BIN)/ganfast train $(DEMO_ARGS) --out $(DEMO_OUT) $(if $(wildcard $(DEMO_OUT)/config.json),--resume)
	@echo
	@echo "Open $(DEMO_OUT)/report.html: samples, the training as an animation, loss curves."
	@echo "The pictures are in $(DEMO_OUT)/samples; from the start once more: make demo DEMO_OUT=runs/another"

test: lint pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy ganfast
	$(BIN)/clang-format --dry-run -Werror $(CPP)
	$(BIN)/lint-imports --no-cache

pytest: $(VENV)/.installed-dev
	$(WITH) $(BIN)/python -m pytest --numprocesses auto --dist loadfile $(PYTEST_ARGS)

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

bench: $(VENV)/.installed
	$(BIN)/ganfast bench ops spectral_norm batch_norm tanh convolution conv_norm resample adam generator carried_scale gradient_penalty critic_step frechet frechet_curves --out docs/results/ops.csv
	for bench in spectral_norm batch_norm generator gradient_penalty frechet; do \
		$(BIN)/ganfast bench plot docs/results/ops.csv docs/results/pictures/$$bench.png $$bench || exit 1; done
	$(BIN)/ganfast bench plot docs/results/ops.csv docs/results/pictures/frechet-curves.png frechet_curves
	$(BIN)/ganfast bench ops penalty_curves --out docs/results/penalty_curves.csv
	$(BIN)/ganfast bench plot docs/results/penalty_curves.csv docs/results/pictures/penalty-curves.png
	$(BIN)/python benches/memory.py
	$(BIN)/ganfast bench training --out docs/results/training.csv
	$(BIN)/ganfast bench plot docs/results/training.csv docs/results/pictures/training.png training

learning: $(VENV)/.installed-dev
	$(BIN)/python benches/learning.py $(LEARNING_ARGS)

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "ganfast needs Python 3.11 or newer, and '$(PYTHON)' is `$(PYTHON) --version 2>&1`; say make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.python $(SOURCES)
	$(INSTALL) $(TOOLS)
	$(INSTALL) --no-build-isolation -e .
	@$(BIN)/python -c "from ganfast import _build; print(_build.report())"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.python $(SOURCES) tests/peers.txt
	$(INSTALL) $(TOOLS)
	$(INSTALL) --no-build-isolation -e '.[dev]'
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --upgrade --no-deps --target $(VENV)/peers -r tests/peers.txt
	rm -rf $(VENV)/peers/tests # a package that comes with torch-fidelity, in the way of our own
	@$(BIN)/python -c "from ganfast import _build; print(_build.report())"
	@touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) build dist ganfast.egg-info ganfast/_build_info.json ganfast/*.so
