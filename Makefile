# make help lists the targets. Needs Python 3.11, make, git, and once the package registries.

PYTHON ?= python3.11
DATA ?= data
RUN ?= runs/demo

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.complete
EMOJI := $(DATA)/emoji
ICONS := $(DATA)/icons

export PYTHONPATH := $(CURDIR)
# TensorFlow's greetings; its errors stay.
export TF_CPP_MIN_LOG_LEVEL ?= 2

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help setup data demo demo-results study basic-l-step batch-65536 test test-slow lint format tensorboard lock report

help: ## this list
	@echo "basic_tf: train, evaluate and export image-text models after BASIC (arXiv 2111.10050)"
	@grep -hE '^[a-z0-9-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | \
	  awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: $(READY) ## the virtual environment in .venv, with the exact requirements

# Complete only when the last line was reached; again when the requirements change.
$(READY): requirements.txt requirements.lock
	@command -v $(PYTHON) >/dev/null && $(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))' \
	  || { echo "make: Python 3.11 with venv is needed, and '$(PYTHON)' is not that." \
	       "Install python3.11 and python3.11-venv, or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Setting up $(VENV): about 1 GB to download, 2 to 5 minutes."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -c requirements.lock \
	  || { echo "make: the requirements were not installed. pip's own words are above; a package registry that cannot be" \
	       "reached also looks like 'no matching distribution' or 'conflicting dependencies'. Name another registry" \
	       "(PIP_INDEX_URL=... make setup) or a folder of wheels (PIP_FIND_LINKS=... make setup)." >&2; exit 1; }
	@$(BIN)/python -m pip check
	@touch $@

# The data's json is written last, so a data set that was cut short is made again.
$(EMOJI)/train.json: | $(READY)
	$(BIN)/python tools/prepare_emoji.py --output_dir=$(EMOJI)

$(EMOJI)/tokenizer.model: $(EMOJI)/train.json | $(READY)
	$(BIN)/python tools/train_tokenizer.py --input=$(EMOJI)/train.json --output=$@ --vocabulary_size=4000 --allow_smaller

$(ICONS)/train.json: $(EMOJI)/train.json | $(READY)
	$(BIN)/python tools/prepare_icons.py --output_dir=$(ICONS) --against='$(EMOJI)/test_*.json'

data: $(EMOJI)/train.json $(EMOJI)/tokenizer.model ## the demo's pictures with captions, and their tokenizer

# Training passes over finished stages by itself. What follows is made again when a stage has finished since.
newer = $(shell test -e $(1) && test -z "$$(find $(RUN) -name finished.json -newer $(1) 2>/dev/null)" && echo yes)

demo: $(READY) $(EMOJI)/train.json $(EMOJI)/tokenizer.model ## real pictures to a zero-shot classifier: data, three stages, evaluation, export
	$(BIN)/python -m basic_tf.train --gin_file=gin/runs/demo.gin --model_dir=$(RUN) --mode=train_and_eval
	@$(MAKE) --no-print-directory demo-results

demo-results: $(READY) ## the part of the demo that follows training
	$(if $(call newer,$(RUN)/results.json),,$(BIN)/python -m basic_tf.evaluate --model_dir=$(RUN) --data_dir=$(EMOJI))
	$(if $(call newer,$(RUN)/saved_model/saved_model.pb),,$(BIN)/python -m basic_tf.export --model_dir=$(RUN) --overwrite)
	$(BIN)/python -m basic_tf.predict --saved_model=$(RUN)/saved_model \
	  --classes="cat,red heart,pizza,rocket,tree,violin" $(EMOJI)/samples
	@echo
	@echo "Results:     $(RUN)/results.md, results.json and pictures beside them"
	@echo "SavedModel:  $(RUN)/saved_model"
	@echo "TensorBoard: make tensorboard (http://localhost:6006)"

batch-65536: $(READY) $(EMOJI)/train.json $(EMOJI)/tokenizer.model ## one exact contrastive step with 65,536 real pairs, twice (minutes)
	$(BIN)/python tools/bench_batch65536.py --data_dir=$(EMOJI)

basic-l-step: $(READY) $(EMOJI)/train.json $(EMOJI)/tokenizer.model ## one optimizer step of BASIC-L, 3.1B weights, in 22 GiB of memory
	$(BIN)/python tools/bench_basic_l_step.py --data_dir=$(EMOJI) --microbatch=4 --output=runs/basic_l_step.json

# Exit code 4: the piece is over, and there is more to do.
study: $(READY) $(EMOJI)/train.json $(EMOJI)/tokenizer.model $(ICONS)/train.json ## BASIC's claims put to the test (hours; stop and go on at will)
	@code=4; while [ $$code = 4 ]; do code=0; $(BIN)/python tools/run_study.py || code=$$?; done; exit $$code

report: $(READY) ## the tables and charts of docs/results/*.md, from the runs
	$(BIN)/python tools/make_report.py docs/results/*.md

test: $(READY) ## the tests, but for the slow ones (minutes; offline)
	$(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile --max-worker-restart=1 $(ARGS)

test-slow: $(READY) ## the slow tests
	$(BIN)/python -m pytest -m slow -o faulthandler_timeout=3600 $(ARGS)

lint: $(READY) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## ruff: rewrite what can be rewritten
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

tensorboard: $(READY) ## watch the runs at http://localhost:6006
	$(BIN)/tensorboard --logdir=$(dir $(RUN))

lock: ## resolve requirements.txt anew into requirements.lock (in a fresh environment)
	@folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	$(PYTHON) -m venv "$$folder" && "$$folder/bin/pip" install --quiet -r requirements.txt && "$$folder/bin/pip" check && \
	{ echo "# Every distribution of the resolution of requirements.txt on Python 3.11, Linux x86-64. Written by \`make lock\`."; \
	  "$$folder/bin/pip" freeze --all --exclude pip --exclude wheel; } > "$$folder/lock" && mv "$$folder/lock" requirements.lock
