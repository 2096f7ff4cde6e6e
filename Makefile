# Every target makes the virtual environment that it needs; `make` alone lists the targets.
# ARGS is passed on, for example: make test ARGS="-k limiter"

.DEFAULT_GOAL := help
.PHONY: help setup test test-web test-redis lint fix demo package preflight bench live clean FORCE

VENV := .venv
RUN := $(VENV)/bin/python -m
STAMP := $(VENV)/.installed
ARGS ?=
export PYTHON

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | while IFS="$$(printf '\t')" read -r name what; do \
		printf '  make %-10s %s\n' "$$name" "$$what"; done

setup: $(STAMP) ## virtual environment with the pinned requirements, in .venv

test: $(STAMP) ## all tests but those below; no network, no key
	@$(RUN) pytest -n 3 --dist loadgroup --ignore tests/web --ignore tests/redis $(ARGS)

test-web: $(STAMP) ## tests of the dashboard in Chromium, which has to be on PATH
	@$(RUN) pytest tests/web $(ARGS)

test-redis: $(STAMP) ## tests of several processes on one Redis, need redis-server
	@$(RUN) pytest -n 3 --dist loadgroup tests/redis $(ARGS)

lint: $(STAMP) ## style, formatting, types
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy

fix: $(STAMP) ## repair what ruff can repair
	@$(RUN) ruff check --fix .
	@$(RUN) ruff format .

demo: $(STAMP) ## the plugin against a simulated gateway; with HOLYSHEEP_API_KEY the real one
	@$(RUN) devtools.demo $(ARGS)

package: $(STAMP) ## build dist/holysheep-VERSION.difypkg and check what is in it
	@$(RUN) devtools.package $(ARGS)

preflight: $(STAMP) ## the same as it would be submitted, and start it in clean environments
	@$(RUN) devtools.preflight $(ARGS)

bench: $(STAMP) ## what a call costs, measured on this machine
	@$(RUN) devtools.bench $(ARGS)

live: $(STAMP) ## tests against the real gateway, with the key in HOLYSHEEP_API_KEY
	@$(RUN) pytest -m live tests/live $(ARGS)

clean: ## remove everything that make has made, .venv too
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name .git -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

# The stamp holds the checksum of what is installed. Files of another date but the same content
# cost nothing; a Python that has gone away since (a broken link) is noticed.
$(STAMP): requirements.txt requirements-dev.txt $(if $(wildcard $(VENV)/bin/python),,FORCE)
	@sh -c "$$SETUP"

# Two makes at once may both come here. A lock is a folder (mkdir is atomic) that holds a file
# named after its owner's process id. A dead owner's lock is removed by the one process that
# manages to unlink that name, so that nobody removes the next owner's lock.
define SETUP
set -eu
lock=$(VENV)/.lock
mkdir -p $(VENV)
waited=0
until mkdir $$lock 2>/dev/null; do
    for owner in $$lock/[0-9]*; do
        kill -0 "$${owner##*/}" 2>/dev/null || { rm "$$owner" 2>/dev/null && rmdir $$lock; } || :
    done
    test $$waited -gt 0 || echo "Waiting for another make to finish $(VENV) ..." >&2
    test $$waited -lt 900 || { echo "$$lock is still there; remove it if no make runs." >&2; exit 1; }
    waited=$$((waited + 1))
    sleep 1
done
trap 'rm -rf $$lock' EXIT
trap 'exit 1' HUP INT TERM
: > $$lock/$$$$

wanted=$$(cat requirements.txt requirements-dev.txt | cksum)
if ! scripts/find-python.sh $(VENV)/bin/python > /dev/null; then
    python=$$(scripts/find-python.sh)
    rm -rf $(VENV)/bin $(VENV)/include $(VENV)/lib $(VENV)/lib64 $(VENV)/pyvenv.cfg $(STAMP)
    if test "$$python" = uv; then
        uv venv --quiet --allow-existing --seed --python 3.12 $(VENV)
    else
        "$$python" -m venv $(VENV)
    fi
fi
if test "$$(cat $(STAMP) 2>/dev/null)" != "$$wanted"; then
    echo "Installing into $(VENV) ($$($(VENV)/bin/python -V)); this happens once ..." >&2
    $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-input \
        -r requirements.txt -r requirements-dev.txt
fi
echo "$$wanted" > $(STAMP)
endef
export SETUP
