# What contributors type, and CI runs: `uv run just` lists it. Programs are those of .venv, else of the active environment.

set positional-arguments

export PATH := justfile_directory() / ".venv/bin:" + env("PATH")

# Versions in requirements-lowest.txt are those for this Python, the oldest that we support.
lowest_python := "3.11"
lowest_env := ".venv-lowest"
lowest_tests := "tests/test_step.py tests/test_stage.py tests/test_cli.py tests/test_train.py tests/test_optim.py tests/test_timm_backbone.py tests/data/test_pixels.py tests/export plugins/focal plugins/ofa plugins/lora"

_list:
    @{{ quote(just_executable()) }} --justfile {{ quote(justfile()) }} --list --unsorted

# All that CI runs: before you submit
[group('checks')]
ci: static test wheels lowest

# What runs no test: lint, imports, types, release
[group('checks')]
static: lint imports types release

# ruff's rules and format
[group('checks')]
lint:
    ruff check .
    ruff format --check .

# Format the code, and mend what ruff can mend
[group('checks')]
format:
    ruff check --fix .
    ruff format .

# Which package may import which
[group('checks')]
imports:
    lint-imports

# mypy over core and every plugin
[group('checks')]
types:
    mypy
    mypy plugins/*/src

# Versions, ranges, entry points, changelog and lists of plugins agree
[group('checks')]
release:
    python .ci/check_release.py

# The tests but slow, GPU, fault and fuzz ones; arguments go to pytest
[group('tests')]
test *ARGS:
    pytest -q "$@"

# The slow tests
[group('tests')]
slow *ARGS:
    pytest -q -m slow "$@"

# The tests that need a GPU
[group('tests')]
gpu *ARGS:
    pytest -q -m gpu "$@"

# Full disks, killed writers, flipped bytes; some need root
[group('tests')]
faults *ARGS:
    pytest -q -m faults "$@"

# Damaged inputs for every reader, so many for each
[group('tests')]
fuzz INPUTS="200":
    LTCORE_FUZZ_INPUTS={{ INPUTS }} pytest -q -n 0 -m fuzz

# The wheels, and a plugin from nothing, in an environment of wheels
[group('tests')]
wheels:
    pytest -q -m slow tests/test_publishing.py

# The report's page in a headless Chromium
[group('tests')]
browser:
    pytest -q -m slow tests/test_report_browser.py

# Lint, types and tests of one plugin, by its folder under plugins/
[group('tests')]
plugin FOLDER:
    ruff check plugins/{{ FOLDER }}
    ruff format --check plugins/{{ FOLDER }}
    mypy plugins/{{ FOLDER }}/src
    pytest -q -n 0 plugins/{{ FOLDER }}

# ltcore check: of the methods that are named, or of all
[group('tests')]
check *METHODS:
    ltcore check "$@"

# Some tests with the lowest versions that pyproject.toml allows, in .venv-lowest
[group('tests')]
lowest *ARGS:
    #!/usr/bin/env bash
    set -euo pipefail
    uv venv --quiet --clear --python {{ lowest_python }} {{ lowest_env }}
    uv pip install --quiet --python {{ lowest_env }} -r requirements-lowest.txt
    uv pip install --quiet --python {{ lowest_env }} --no-deps -e . $(printf -- '-e %s ' plugins/*/)
    . {{ lowest_env }}/bin/activate
    (($#)) || set -- {{ lowest_tests }}
    python -m pytest -q "$@"

# SIGKILLs at random moments in runs and commands
[group('long runs')]
kills N="200":
    python benchmarks/kills.py --kills {{ N }}

# Many runs in one process
[group('long runs')]
soak RUNS="1000":
    python benchmarks/soak.py --runs {{ RUNS }}

# Kills, soak, fuzz and faults; writes results/reliability.md
[group('long runs')]
reliability:
    python benchmarks/reliability.py

# Small changes in the code: do the module's own tests notice?
[group('long runs')]
mutants CHANGES="300":
    python benchmarks/mutants.py --changes {{ CHANGES }}

# All that is written by scripts: lists of plugins, pages of hooks, commands, plugin API and recipes
[group('generated files')]
generate: plugins docs recipes

# What other files say of the plugins
[group('generated files')]
plugins:
    python .ci/plugins.py --write

# docs/hooks.md, docs/methods.md, docs/commands.md, docs/plugin_api.md
[group('generated files')]
docs:
    python docs/make_hooks.py
    python docs/make_methods.py
    python docs/make_commands.py
    python docs/make_plugin_api.py

# docs/recipe_index.md
[group('generated files')]
recipes:
    python benchmarks/recipe_index.py

# requirements-tested.txt: the versions of this environment, with which all tests have just passed
[group('generated files')]
tested-versions:
    uv pip freeze --exclude-editable > requirements-tested.txt
    sed -i "s/rev: v.*/rev: v$(sed -n s/^ruff==//p requirements-tested.txt)/" .pre-commit-config.yaml

# requirements-lowest.txt: the lowest versions that pyproject.toml and plugins/*/pyproject.toml allow
[group('generated files')]
lowest-versions:
    uv pip compile --quiet --no-annotate --no-header --resolution lowest-direct --python-version {{ lowest_python }} \
        --all-extras --group test pyproject.toml plugins/*/pyproject.toml | grep -v '^-e ' > requirements-lowest.txt

# All wheels, into dist/
[group('publishing')]
build:
    uv build --all-packages --wheel --out-dir dist

# ruff before every commit
[group('publishing')]
hooks:
    uvx pre-commit install
