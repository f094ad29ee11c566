# Janus-Pro fine-tuning: raw data -> shards -> trained checkpoint. `make help` lists everything.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed

TASK ?= mixed
DATA ?=
MODEL ?=
RECIPE ?=
STEPS ?=
LENGTH ?=
OUT ?=
ARGS ?=

# A value as one word of the shell, blanks and quotes in it and all; a leading ~/ is the home folder.
home = $(if $(filter ~/%,$(firstword $(1))),$(subst ~/,$(HOME)/,$(1)),$(1))
quote = '$(subst ','\'',$(call home,$(1)))'
# The last part of a path. make's own functions on paths take a blank for the end of a name.
last = $(shell basename -- "$$(cd -- $(call quote,$(1)) 2>/dev/null && pwd || echo $(call quote,$(1)))")

# Without DATA and MODEL the embedded sample and its model run: random weights, a palette as VQ tokenizer.
SAMPLE := data/sample
RAW := $(if $(DATA),$(DATA),$(SAMPLE))
NAME := $(if $(DATA),$(call last,$(DATA)),sample)-$(if $(MODEL),$(call last,$(MODEL)),tiny)
SHARDS ?= data/$(NAME)/shards
WORK := data/$(NAME)/work
NETWORK := $(if $(MODEL),$(MODEL),$(SAMPLE)/tiny)
HAS_TOKENIZER := $(if $(MODEL),$(shell test -f $(call quote,$(MODEL))/tokenizer.json && echo yes))
TOKENIZER := $(if $(HAS_TOKENIZER),$(MODEL),$(SAMPLE)/tokenizer)
LONGEST := $(if $(LENGTH),--max-length $(call quote,$(LENGTH)))
CONFIG := $(if $(RECIPE),$(RECIPE),$(if $(DATA)$(MODEL),$(TASK),sample))

.DEFAULT_GOAL := help
.PHONY: help setup sample shards preview train test test-slow test-disturbed test-browser test-parity demo own-data bench ascend-audit ascend-dryrun lint audit clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 14
	@echo 'variables, all optional:'
	@echo '  TASK=       text, vqa, t2i, edit, interleaved or mixed (default mixed)'
	@echo '  DATA=       folder of your data, see docs/data.md (default: the embedded sample)'
	@echo '  MODEL=      checkpoint or tokenizer folder, or a preset of random weights: tiny, 1b, 7b'
	@echo '  RECIPE=     training recipe: a YAML file or a shipped name (default: the task'"'"'s)'
	@echo '  SHARDS=     where the shards stand (default data/NAME/shards)'
	@echo '  OUT=        folder of the run (default outputs/TASK-NNN, the next free one)'
	@echo '  STEPS=      optimizer steps'
	@echo '  LENGTH=     longest sample in tokens (default 1024; an edit of two pictures needs 1280)'
	@echo '  ARGS=       passed on to the command as they are'

setup: $(READY) ## make .venv and install the project into it

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

sample: $(READY) ## write the embedded sample data, its tokenizer and its model
	@test -f $(SAMPLE)/tiny/config.json || $(BIN)/pipelines sample --data $(SAMPLE)

# The sample is also where the default tokenizer comes from.
shards: $(if $(and $(DATA),$(HAS_TOKENIZER)),$(READY),sample) ## build shards from DATA; unchanged stages are skipped
	$(BIN)/pipelines build --data $(call quote,$(RAW)) --work $(call quote,$(WORK)) --out $(call quote,$(SHARDS)) \
	  --tokenizer $(call quote,$(TOKENIZER)) --model $(call quote,$(NETWORK)) $(LONGEST) $(if $(filter shards,$(MAKECMDGOALS)),$(ARGS))

preview: shards ## a page to look at the shards in a browser
	$(BIN)/shards preview $(call quote,$(SHARDS)) --model $(call quote,$(NETWORK)) $(ARGS)

train: shards ## train TASK on the shards, building them first where needed
	$(BIN)/trainer train --config $(call quote,$(CONFIG)) $(if $(RECIPE),,--task $(call quote,$(TASK))) \
	  --model $(call quote,$(NETWORK)) --shards $(call quote,$(SHARDS)) \
	  $(if $(OUT),--out $(call quote,$(OUT))) $(if $(STEPS),--steps $(call quote,$(STEPS))) $(LONGEST) $(ARGS)

demo: $(READY) ## from nothing to answers and pictures in 10 minutes; fails where it did not learn
	$(BIN)/python -m bench.demo.sample $(ARGS)

own-data: $(READY) ## edits of pictures as your own JSONL, trained in 10 minutes; fails where it did not learn
	$(BIN)/python -m bench.demo.own_data $(ARGS)

test: $(READY) ## run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(READY) ## what takes long: kill, fill, damage and deceive it
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile --durations=10

test-disturbed: $(READY) ## the network's tests with every sum in another order
	$(BIN)/python -m pytest tests/model tests/stream tests/samples -n 2 --dist loadfile --disturbed

test-browser: $(READY) ## look at the written pages with a real headless Chromium; fails where there is none
	JANUS_TEST_BROWSER=required $(BIN)/python -m pytest tests/report/test_browser.py

# torch is only a peer to compare with, in an environment of its own.
test-parity: .venv-parity/.installed ## compare with transformers and torch (installs torch into .venv-parity)
	.venv-parity/bin/python -m pytest tests/parity

.venv-parity/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,parity]'
	@touch $@

# The peers do not fit beside MindSpore: an environment of their own. One that does not install is named as skipped.
bench: $(READY) .venv-bench/.installed ## measure beside the peers, write bench/RESULTS.md and README's table
	$(BIN)/python -m bench $(ARGS)
	$(if $(ARGS),,$(BIN)/python -m bench --readme)

.venv-bench/.installed: bench/sides/peers.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -r bench/sides/peers.txt
	@touch $@

ascend-audit: $(READY) ## ask MindSpore's Ascend compiler about every graph, on this CPU with CANN stubbed
	$(BIN)/python -m bench.ascend.audit $(ARGS)

ascend-dryrun: $(READY) ## compile 1B and 7B with the CANN that is installed, under MindSpore's simulation
	$(BIN)/python -m bench.ascend.audit.dryrun $(ARGS)

lint: $(READY) ## check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

audit: $(READY) ## known vulnerabilities of the pinned dependencies (asks osv.dev)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[audit]'
	.ci/audit $(BIN)/pip-audit

clean: ## remove generated data and runs
	rm -rf data outputs
