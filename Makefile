# Every target sets up .venv by itself when it is missing or stale. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
COVER  := $(if $(COVERAGE),--cov --cov-report=term:skip-covered)

.DEFAULT_GOAL := help
.PHONY: help quickstart blocks noise latents emoji study paper check test chaos bench lint types notebooks docs clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,notebooks,trackers,dinov2]'
	@touch $@

quickstart: $(STAMP) ## train, sample and score a grid of small DiTs on digits, then draw it (about 5 minutes on 2 cores)
	$(BIN)/dit-harness plan sweeps/quickstart.toml
	$(BIN)/dit-harness launch sweeps/quickstart.toml
	$(BIN)/dit-harness report quickstart

blocks: $(STAMP) ## compare the four conditioning blocks on digits
	$(BIN)/dit-harness launch sweeps/quickstart-blocks.toml
	$(BIN)/dit-harness report quickstart-blocks

noise: $(STAMP) ## how much chance is in a distance: one model trained 12 times, each sampled 4 times (about 10 minutes)
	$(BIN)/dit-harness launch sweeps/noise-floor.toml
	$(BIN)/dit-harness report noise-floor

latents: $(STAMP) ## the paper's way through latents on Fashion-MNIST: autoencoder, encode, grid, report (about 12 minutes)
	$(BIN)/dit-harness train-vae sweeps/fashion-latents.toml
	$(BIN)/dit-harness encode sweeps/fashion-latents.toml
	$(BIN)/dit-harness launch sweeps/fashion-latents.toml
	$(BIN)/dit-harness report fashion-latents

emoji: $(STAMP) ## a colour study on emoji pictures, fetched by npm and scored by an extractor trained on them (about 30 minutes)
	$(BIN)/python -m harness.data.emoji data/emoji
	$(BIN)/dit-harness train-vae sweeps/emoji.toml
	$(BIN)/dit-harness encode sweeps/emoji.toml
	$(BIN)/dit-harness launch sweeps/emoji.toml
	$(BIN)/dit-harness report emoji

study: $(STAMP) ## our own study on Fashion-MNIST, docs/study.md (about 6 hours on 2 cores; goes on where it stopped)
	for part in scaling small starved schedule noise blocks unet flow steps clip; do \
	    $(BIN)/dit-harness launch sweeps/fashion-$$part.toml && $(BIN)/dit-harness report fashion-$$part || exit; done
	@test -f results/fashion-scaling/forecasts.json || { echo "fashion-large: first forecast its cells, see docs/study.md"; exit 2; }
	$(BIN)/dit-harness launch sweeps/fashion-large.toml
	$(BIN)/dit-harness report fashion-large
	$(BIN)/dit-harness report fashion-scaling

paper: $(STAMP) ## redraw the paper's plots from its published numbers (seconds)
	$(BIN)/dit-harness report results/paper

notebooks: $(STAMP) ## execute analysis/notebooks on a study (DIT_STUDY=results/NAME, by default results/paper)
	DIT_STUDY=$(or $(DIT_STUDY),results/paper) $(BIN)/python -m analysis.notebooks

check: lint types ## lint, types and the quick tests, in about a minute: the loop of an edit
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q -m quick

test: $(STAMP) ## run all tests, four processes at a time, for many wait (COVERAGE=1 measures what they cover)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder $(COVER)

chaos: $(STAMP) ## kill launchers and jobs at 100 random writes; every study must end alike (SEED=1 repeats a run)
	$(BIN)/python -m tests.chaos.rounds --kills 100 $(if $(SEED),--seed $(SEED))

bench: $(STAMP) ## measure what costs how much, as ratios side by side (decides no test)
	$(BIN)/python -m tests.bench --write
	$(BIN)/python -m tests.analysis.bench

lint: $(STAMP) ## check style, formatting, and that imports run one way
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP) ## check types, strictly, of the tests too
	$(BIN)/mypy

docs: $(STAMP) ## write the tables of docs/ anew from the specs and the columns
	$(BIN)/python docs/generate.py

clean: ## remove the environment and caches (results stay)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
