# Every chore of the project. `make demo` and `make test` work from a bare clone with Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
VLLM := .venv-vllm
VLLM_STAMP := $(VLLM)/.ready
SGLANG := .venv-sglang
SGLANG_STAMP := $(SGLANG)/.ready
PORT ?= 8000
URL ?=
ARGS ?=
LOAD := --rate 2 --duration-s 30 --mix single=0.5,self_consistency=0.2,best_of_n=0.1,ets=0.2 \
	--json load-results/load.json --html load-results/load.html

.DEFAULT_GOAL := help
.PHONY: help setup demo serve check fix test setup-vllm setup-vllm-suffix setup-sglang test-vllm test-sglang load models bench redis clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

setup: $(STAMP) ## make .venv with the server, the embedded engine and the benches

# torch is named first and pinned: asked for by another package, the newest build with its CUDA
# libraries would come instead.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt -e '.[torch,load,dev]'
	$(BIN)/python -m pip install --quiet --no-deps -e clients/python
	@touch $(STAMP)

setup-vllm: $(VLLM_STAMP) ## make .venv-vllm with vLLM for CPUs

# Its dependencies are installed by list: deploy/vllm/requirements-cpu.txt says why.
$(VLLM_STAMP): pyproject.toml $(wildcard deploy/vllm/*.txt)
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --upgrade pip
	$(VLLM)/bin/python -m pip install --quiet "$$(grep '^torch==' deploy/vllm/constraints-cpu.txt)"
	$(VLLM)/bin/python -m pip install --quiet --no-deps -r deploy/vllm/requirements-cpu-bare.txt
	$(VLLM)/bin/python -m pip install --quiet --constraint deploy/vllm/constraints-cpu.txt \
	  -r deploy/vllm/requirements-cpu.txt -r deploy/vllm/requirements-bough.txt
	$(VLLM)/bin/python -m pip install --quiet --no-deps -e . -e clients/python
	@touch $(VLLM_STAMP)

# Its build asks for a torch of its own, which it uses for a path only: it is shown vLLM's instead.
setup-vllm-suffix: setup-vllm ## compile what vLLM's own drafting method `suffix` needs
	$(PYTHON) -m venv $(VLLM)/suffix
	$(VLLM)/suffix/bin/python -m pip install --quiet -r deploy/vllm/requirements-suffix.txt
	$(VLLM)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
	  > "$$($(VLLM)/suffix/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/vllm.pth"
	PATH="$(CURDIR)/$(VLLM)/suffix/bin:$$PATH" $(VLLM)/suffix/bin/python -m pip wheel --quiet --no-deps \
	  --no-build-isolation --wheel-dir $(VLLM)/suffix/wheels arctic-inference==0.1.1
	$(VLLM)/bin/python -m pip install --quiet --no-deps $(VLLM)/suffix/wheels/arctic_inference-*.whl

setup-sglang: $(SGLANG_STAMP) ## make .venv-sglang with SGLang for CPUs

# The server alone lives there; the tests that start it run in $(VENV).
$(SGLANG_STAMP): $(wildcard deploy/sglang/*.txt)
	$(PYTHON) -m venv $(SGLANG)
	$(SGLANG)/bin/python -m pip install --quiet --upgrade pip
	$(SGLANG)/bin/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(SGLANG)/bin/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)" \
	  -r deploy/sglang/requirements-cpu.txt
	$(SGLANG)/bin/python -m pip install --quiet --no-deps -r deploy/sglang/requirements-cpu-bare.txt
	@touch $(SGLANG_STAMP)

demo: setup ## ask held-out problems under every strategy and print a table
	$(BIN)/python -m loadtests.demo $(ARGS)

serve: setup ## keep a server on :8000 (PORT=…)
	$(BIN)/bough serve --host 127.0.0.1 --port $(PORT) $(ARGS)

check: setup ## formatting, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: setup ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The store's contract suite also runs on a real Redis where there is one.
redis:
	@command -v redis-server >/dev/null || { \
	  [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq redis-server >/dev/null; \
	} || echo "no redis-server and no right to install one: its tests are skipped"

test: setup redis ## everything that needs no GPU
	$(BIN)/python -m pytest -q -m "not gpu and not vllm and not sglang" $(ARGS)

# vLLM leaves the sockets' context of an engine whose process was killed to the garbage collector.
test-vllm: setup-vllm ## tests that need a real vLLM; makes .venv-vllm
	$(VLLM)/bin/python -m pytest -q -m vllm -W "ignore:Unclosed context:ResourceWarning" \
	  tests/real_vllm $(ARGS)

test-sglang: setup setup-sglang ## tests that need a real SGLang; makes .venv-sglang
	$(BIN)/python -m pytest -q -m sglang tests/real_sglang $(ARGS)

load: setup ## load-test a server of its own, or URL=…
	$(BIN)/python -m loadtests.driver $(if $(URL),--url $(URL)) $(if $(ARGS),$(ARGS),$(LOAD))

models: setup ## train the bundled models again (under three hours on two cores)
	$(BIN)/python -m models.training $(ARGS)

bench: setup ## the benches: ARGS='quality --n 1000 --seed 7'
	$(BIN)/bough bench $(if $(ARGS),$(ARGS),engine)

clean: ## remove what was installed and measured
	rm -rf $(VENV) $(SGLANG) $(VLLM) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache bench-results load-results
