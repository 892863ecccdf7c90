# Everything runs from a clean clone: the environment is made on first use.
.DEFAULT_GOAL := help
BIN := .venv/bin
# A file more at a time than the usual two cores: tests also wait.
SIDE_BY_SIDE := -n3 --dist=loadfile --no-loadscope-reorder
# Tests start thousands of processes: each would compile everything anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help run test test-servers test-long test-compose test-fips bench chaos lint style types compiled programs gen lock clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

.venv/.installed: requirements.txt pyproject.toml
	@deploy/launcher/install.sh

# buf, which checks the protos; nothing of the product runs on Node.js.
node_modules/.installed: package-lock.json
	@npm install --no-save --no-fund --no-audit --loglevel=error
	@touch $@

run: .venv/.installed ## Start everything here, without containers; Ctrl-C stops it
	@exec $(BIN)/evergreen up

test: .venv/.installed ## Run all tests but the following, on real PostgreSQL, NATS and Envoy, three files at a time
	@exec $(BIN)/python -m tools.suite $(SIDE_BY_SIDE) "-m=not servers"

test-servers: .venv/.installed ## Run what upgrades, restores and releases whole installations, the documentation's commands, and programs of others (Chromium, LibreOffice, PgBouncer, swtpm), which are installed from Debian as root
	@EVERGREEN_TEST_SERVERS=1 exec $(BIN)/python -m tools.suite $(SIDE_BY_SIDE) -rs -m=servers

test-long: .venv/.installed ## Run what takes minutes: property tests and fuzzers at length, the benchmark on stand-ins
	@EVERGREEN_TEST_LONG=1 EVERGREEN_TEST_SERVERS=1 EVERGREEN_FUZZ_CALLS=5000 exec $(BIN)/python -m pytest -n 2 --dist loadfile -m "hypothesis or long"

test-compose: .venv/.installed ## Build the image, run Compose on stand-ins of public images; needs Docker, or root and dockerd
	@EVERGREEN_TEST_COMPOSE=1 exec $(BIN)/python -m pytest -s tests/compose tests/services/identity/event_access/test_integrators_cluster.py

test-fips: .venv/.installed ## Try FIPS mode with a real module, then the whole product in it: Debian 13 by debootstrap; needs root, an hour the first time
	@EVERGREEN_TEST_FIPS=1 exec $(BIN)/python -m pytest -n0 -p no:cacheprovider tests/external/test_fips.py tests/external/test_fips_product.py

# BASE=<commit> [SECTIONS=poll,mix@200,rest] [LIMIT=3] [SIZE=devices,organisations,groups], or DISTURBANCE=<command>: docs/benchmarks.md.
bench: .venv/.installed ## Measure what calls cost, over a floor or BASE=<commit>; BENCH=quick or full
ifneq ($(BASE)$(DISTURBANCE),)
	@exec $(BIN)/python -m bench.against $(BENCH) $(if $(BASE),--base "$(BASE)") \
	  $(if $(SECTIONS),--sections "$(SECTIONS)") $(if $(LIMIT),--limit "$(LIMIT)") \
	  $(if $(SIZE),--size "$(SIZE)") \
	  $(if $(DISTURBANCE),--disturbance "$$DISTURBANCE")
else
	@exec $(BIN)/python -m bench $(BENCH)
endif

chaos: .venv/.installed ## Break everything for ten minutes, then count what was promised; CHAOS="--minutes 3"
	@exec $(BIN)/python -m chaos $(CHAOS)

lint: style types ## Check style, types and the walls between the contexts

style: .venv/.installed node_modules/.installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python -m tools.asyncapi.check
	@$(BIN)/python -m tools.numbers
	@npx --no-install buf lint
	@npx --no-install buf format --diff --exit-code
	@# What `python -m tools.release` recorded last.
	@npx --no-install buf breaking --against protos/released.binpb

types: .venv/.installed
	@$(BIN)/mypy

# Reads and compiles the tests: done once here, the workers need not do it at the same time.
compiled: .venv/.installed
	@said=$$(EVERGREEN_TEST_SERVERS=1 $(BIN)/python -m pytest --collect-only -qq) || { echo "$$said"; exit 1; }

# What `make test-servers` would otherwise install while it runs; it takes no package of .venv.
programs:
	@python3 -m tests.support.debian

gen: .venv/.installed ## Make again what comes from protos/ and libs/contract: code, documents, parts of the chart
	@exec $(BIN)/python -m tools.gen

lock: ## Pin the newest packages that pyproject.toml allows (needs uv)
	@uv pip compile -q --python-version 3.11 --generate-hashes --extra local --extra sim --extra dev \
	  --upgrade --custom-compile-command '`make lock`' -o requirements.txt pyproject.toml

clean: ## Remove the environment and caches; the state in .evergreen stays
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
