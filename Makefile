# `make run` and `make test` need nothing else: bootstrap.sh makes .venv first, and again when C or packaging changes.
MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help
SOAK ?= 600

PYTHON := .venv/bin/python
READY := .venv/.hal-stamp
CHECKERS := .venv/.hal-check-stamp
# An edit to Python needs no build: .venv imports the checkout's own files. A module that was moved or removed does.
MODULES := find hal backends native/hal_native -name '*.py' | LC_ALL=C sort | cksum
BUILT_FROM := pyproject.toml bootstrap.sh native/ffi_build.py \
	$(shell find native -name '*.[ch]' -o -name CMakeLists.txt)

# A .venv that was not finished, or that was moved or copied here, is made anew.
ifneq ($(shell cat .venv/.hal-modules 2>/dev/null),$(shell $(MODULES)))
$(READY): anew
endif
ifneq ($(shell cat .venv/.hal-sound 2>/dev/null),$(shell pwd -P))
$(READY) $(CHECKERS): anew
endif

$(READY): $(BUILT_FROM)
	@./bootstrap.sh

$(CHECKERS): pyproject.toml bootstrap.sh | $(READY)
	@./bootstrap.sh check

.PHONY: run test check bench soak clean help anew

run: $(READY) ## Set up, then show on this machine, GPU or not, what hal does
	@.venv/bin/hal demo

test: $(READY) ## Set up, then run all tests
	@$(PYTHON) -m pytest

check: $(READY) $(CHECKERS) ## Style, types, layers, and the native tests under sanitizers
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	$(PYTHON) -m mypy
	.venv/bin/lint-imports --no-logo
	unset MAKEFLAGS MAKELEVEL; PATH="$(CURDIR)/.venv/bin:$$PATH"; for kind in ON thread; do \
		cmake -S native -B build/sanitize-$$kind -DHAL_SANITIZE=$$kind -DHAL_TESTS=ON \
		&& cmake --build build/sanitize-$$kind --parallel \
		&& ctest --test-dir build/sanitize-$$kind --output-on-failure || exit 1; done

bench: $(READY) ## Measure, and print the figures
	@if [ -d benchmarks ]; then $(PYTHON) -m benchmarks; else echo "hal: there are no benchmarks yet"; fi

soak: $(READY) ## Repeat all tests, with 1,000 kills, a million frames and new random cases, for SOAK=600 seconds
	@unset CI; export HAL_HISTORIES=2000 HAL_FRAMES=1000000 HAL_ROUNDS=500; end=$$(($$(date +%s) + $(SOAK))); \
	while $(PYTHON) -m pytest -q -o timeout=7200; do [ $$(date +%s) -lt $$end ] || exit 0; done; exit 1

clean: ## Remove all that was made here: .venv, build/ and caches
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

help: ## Say what there is
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1	\2/p' $(firstword $(MAKEFILE_LIST))
