# Connect Chat on one machine; "make" alone lists what there is.

ifneq ($(findstring :,$(CURDIR)),)
$(error the path of the checkout, $(CURDIR), has a colon, where virtual environments and Java end a path: move it)
endif

# A variable of make's command line as one word of the shell, whatever is in it.
quoted = '$(subst ','\'',$(value $1))'

# Debian's Python first: one that was compiled without profile-guided optimisation is 1.4 times as slow. One that is
# given, as in "make unit PYTHON=python3.13", has a virtual environment of its own.
ifeq ($(value PYTHON),)
PYTHON := $(shell /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo /usr/bin/)python3
VENV := .venv
else
VENV := .venv-$(shell $(call quoted,PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
endif
JARS := .local/jars
WEB := chat_streams/inspector/web
RUN := $(VENV)/bin/python
STACK := $(RUN) -m docker.local.stack
PREREQUISITES := PYTHON=$(call quoted,PYTHON) docker/local/install-prerequisites.sh
PREREQUISITES_STAMP := .local/prerequisites$(VENV).stamp
# Every shell has a variable USER: only the one given to make counts.
user = $(if $(and $(findstring command line,$(origin USER)),$(value USER)),$(call quoted,USER),$(error say who: make $@ USER=alice))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup installed up down status logs token chat demo test faults bench bench-peers image lint unit format lock

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Ports and the data folder: CHAT_LOCAL_* variables, see docker/local/layout.py"

setup: ## Install the Python packages and the engines (the second time, only what changed)
	@$(MAKE) --no-print-directory -j2 installed

demo: up ## Start everything and show what it does
	@$(STACK) run docker.local.demo

up: setup ## Start everything in the background; returns when all is ready
	@$(STACK) up

down: setup ## Stop everything; the data stays
	@$(STACK) down

status: setup ## Show how every part is
	@$(STACK) status

logs: setup ## Follow the logs of all parts, or of one: PART=gateway
	@$(STACK) logs $(PART)

token: setup ## Print a token for a user: USER=alice; for the inspector ROLE=viewer, ROLE="operator bodies"
	@$(STACK) run faust -A chat_streams token $(user) $(addprefix --role ,$(ROLE))

chat: setup ## Chat in this terminal as a user: USER=alice
	@$(STACK) run docker.local.chat $(user)

test: ## Check and test everything
	@$(PREREQUISITES) test
	@$(MAKE) --no-print-directory lint
	@$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

faults: ## The tests that take long, then the fault matrix of docs/faults.md; SEEDS=20 for the long run
	@$(PREREQUISITES) faults
	@$(MAKE) --no-print-directory setup
	@$(RUN) -m pytest -m long
	@$(RUN) -m tests.faults.matrix --seeds $(or $(SEEDS),1)

bench: $(VENV)/bench.stamp ## Measure beside Mosquitto, NATS and ejabberd; QUICK=1 takes 3 minutes (docs/benchmarks.md)
	@$(RUN) -m bench run $(if $(QUICK),--quick)
	@$(RUN) -m bench $(if $(QUICK),show bench/results/quick.json,report)

bench-peers: ## Install the peers of the benchmark: two Debian packages (needs root), and NATS with Go
	@sh bench/install-peers.sh

image: up ## Build the container image, and start a gateway from it beside the stack
	@$(STACK) run docker.local.image

lint: setup $(VENV)/aws.stamp $(WEB)/node_modules/.linter.stamp ## Check style, types, layers, container files and workflows
	@$(RUN) -m ruff check
	@$(RUN) -m ruff format --check
	@$(RUN) -m mypy
	@$(RUN) -m tests.lint.docstrings
	@$(RUN) -m tests.lint.private_members >/dev/null
	@$(VENV)/bin/lint-imports --no-logo --cache-dir .local/import-linter
	@$(WEB)/node_modules/.bin/eslint -c $(WEB)/eslint.config.js --max-warnings 0 $(dir $(WEB))static $(WEB)/*.js tests/javascript
	@$(VENV)/bin/hadolint docker/Dockerfile
	@$(VENV)/bin/check-jsonschema --quiet --builtin-schema vendor.compose-spec docker/compose*.yaml
	@$(VENV)/bin/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yaml
	@if command -v actionlint >/dev/null; then actionlint .github/workflows/*.yaml; fi
	@$(VENV)/bin/yamllint --strict docker/compose*.yaml docker/monitoring .github .pre-commit-config.yaml .yamllint.yaml
	@if command -v promtool >/dev/null; then cd docker/monitoring && promtool check config --lint-fatal prometheus.yml >/dev/null; fi
	@! grep -v '^ *#' docker/requirements.lock | grep -vxFf requirements.lock \
		|| { echo "docker/requirements.lock differs from requirements.lock: run 'make lock'" >&2; exit 1; }

unit: setup ## Run the tests that need no engine; PYTHON=python3.13 on another Python
	@$(RUN) -m pytest tests/unit tests/docs

format: setup ## Format the code and fix what can be fixed
	@$(RUN) -m ruff format
	@$(RUN) -m ruff check --fix

lock: ## Lock the Python packages of pyproject.toml anew (needs uv)
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --extra dev pyproject.toml -o requirements.lock
	uv pip compile -q --universal --python-version 3.11 --generate-hashes -c requirements.lock pyproject.toml -o docker/requirements.lock
	uv pip compile -q --universal --python-version 3.11 --generate-hashes -c requirements.lock --extra bench pyproject.toml -o bench/requirements.lock
	uv pip compile -q --universal --python-version 3.11 --generate-hashes -c requirements.lock --extra aws pyproject.toml -o docker/aws/requirements.lock

$(VENV)/bench.stamp: bench/requirements.lock $(VENV)/installed.stamp | setup
	@$(RUN) -m pip install --quiet --disable-pip-version-check --require-hashes -r $< >&2
	@touch $@

# Bytecode of all of the CDK would take three times as long as the rest, and a stack uses a few of its modules.
$(VENV)/aws.stamp: docker/aws/requirements.lock $(VENV)/installed.stamp | setup
	@echo "setup: installing the packages of the stack for AWS into $(VENV)" >&2
	@$(RUN) -m pip install --quiet --no-compile --disable-pip-version-check --require-hashes -r $< >&2
	@touch $@

# Progress goes to stderr: "make token" prints a token and nothing else.
installed: $(VENV)/installed.stamp $(JARS)/kafka.stamp $(JARS)/dynamodb.stamp $(WEB)/node_modules/.installed.stamp
	@:

$(PREREQUISITES_STAMP): docker/local/install-prerequisites.sh
	@$(PREREQUISITES)
	@mkdir -p $(@D) && touch $@

$(VENV)/installed.stamp: requirements.lock | $(PREREQUISITES_STAMP)
	@echo "setup: installing the Python packages into $(VENV)" >&2
	@$(call quoted,PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --quiet --disable-pip-version-check --require-hashes -r $< >&2
	@touch $@
	@echo "setup: the Python packages are installed" >&2

$(WEB)/node_modules/.installed.stamp: $(WEB)/package-lock.json | $(PREREQUISITES_STAMP)
	@echo "setup: fetching the inspector's browser libraries" >&2
	@cd $(WEB) && npm ci --omit=dev --ignore-scripts --no-audit --no-fund --silent >&2
	@touch $@

# Only "make lint" needs it, and it takes four times as long as the libraries. "npm ci" would begin with removing those,
# and npm removes a stamp whose name begins with no dot.
$(WEB)/node_modules/.linter.stamp: $(WEB)/node_modules/.installed.stamp | setup
	@echo "setup: fetching the linter of the inspector's JavaScript" >&2
	@cd $(WEB) && npm install --include=dev --no-save --ignore-scripts --no-audit --no-fund --silent >&2
	@touch $@

$(JARS)/%.stamp: docker/local/%/pom.xml | $(PREREQUISITES_STAMP)
	@echo "setup: fetching $* into $(JARS)" >&2
	@mkdir -p $(JARS) && rm -rf $(JARS)/$* $@
	@LC_ALL=C.UTF-8 mvn -q -B -f $< dependency:copy-dependencies -DoutputDirectory=../../../$(JARS)/$* >$(JARS)/$*.log 2>&1 \
		|| { cat $(JARS)/$*.log >&2; exit 1; }
	@touch $@
	@echo "setup: $* is installed" >&2

# One after the other: two Mavens at once may write the same file of the local repository.
$(JARS)/dynamodb.stamp: | $(JARS)/kafka.stamp
