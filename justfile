# The uv that runs this recipe, or the one on the path. A path may hold spaces.
uv := quote(env("UV", "uv"))
just := quote(just_executable())

# List the recipes.
default:
    @just --list

# Run the main job end to end against the emulator, and show its traces; --keep stays up, --verbose shows all.
[no-exit-message]
demo *options:
    @exec {{uv}} run python -m demo {{options}}

# Start gateway, cloner, emulator and Jaeger in containers.
up:
    docker compose up --build --detach --wait
    @echo "gateway http://localhost:3005/health   traces http://localhost:16686"

# Profiles that .env names stay: a shell's COMPOSE_PROFILES, as --profile, would take their place. Compose tells them from
# 2.28 on; with an older one only these containers are started.
# The same with Prometheus, Grafana and a collector that chooses which traces to keep.
observe:
    COMPOSE_PROFILES="observability,$(docker compose config --environment | sed -n 's/^COMPOSE_PROFILES=//p')" \
        OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318 docker compose up --build --detach --wait
    @echo "dashboard http://localhost:3000   alerts http://localhost:9090/alerts   traces http://localhost:16686"

# Stop the containers, whatever profiles they have.
down:
    docker compose --profile '*' down

# Spans go to http://localhost:4318. The Jaeger that is here (JAEGER_BIN, PATH) is taken, else a container, else one
# that Go builds, which takes minutes and has no pages of its own: JAEGER_UI names a folder of them.
# Start a Jaeger and open it, until Ctrl-C.
[no-exit-message]
jaeger:
    #!/usr/bin/env bash
    set -euo pipefail
    page=http://localhost:16686
    program=${JAEGER_BIN:-$(command -v jaeger || echo {{quote(justfile_directory())}}/.jaeger/jaeger)}
    if [ ! -x "$program" ] && docker info > /dev/null 2>&1; then
        program=(docker run --rm --publish 127.0.0.1:16686:16686 --publish 127.0.0.1:4318:4318 jaegertracing/jaeger:2.13.0)
    else
        if [ ! -x "$program" ]; then
            mkdir -p .jaeger && cd .jaeger
            [ -e go.mod ] || go mod init jaeger
            export GOFLAGS=-mod=mod
            go get -tool github.com/jaegertracing/jaeger/cmd/jaeger@v1.76.0
            go build -o jaeger github.com/jaegertracing/jaeger/cmd/jaeger
        fi
        program=("$program" ${JAEGER_UI:+"--set=extensions.jaeger_query.ui.assets_path=$JAEGER_UI"})
    fi
    echo "traces $page   spans to OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318"
    for open in xdg-open open; do
        if command -v "$open" > /dev/null; then (sleep 3; "$open" "$page" > /dev/null 2>&1 || true) & break; fi
    done
    exec "${program[@]}"

# Write the Python code of the proto files.
generate into="generated":
    {{uv}} run python -m grpc_tools.protoc --proto_path=proto --python_out={{quote(into)}} --grpc_python_out={{quote(into)}} \
        --mypy_out=quiet:{{quote(into)}} --mypy_grpc_out=quiet:{{quote(into)}} precall/v1/cloning.proto precall/v1/error_reason.proto
    touch {{quote(into)}}/precall/v1/py.typed

# Put code and proto files into the house style.
format:
    {{uv}} run ruff format
    {{uv}} run ruff check --fix
    {{uv}} run buf format --write

# Everything that can be told without running the code.
check:
    {{uv}} lock --check
    {{uv}} run ruff format --check
    {{uv}} run ruff check
    {{uv}} run mypy
    {{uv}} run lint-imports
    {{uv}} run buf lint
    {{uv}} run buf format --diff --exit-code
    {{just}} check-contract
    {{just}} check-generated
    {{uv}} run hadolint Dockerfile
    {{uv}} run shellcheck .ci/run

# The contract only grows: nothing that landed is taken away or changed. What landed is the commit where this work
# left the main branch, of the origin if there is one; on the main branch itself, the commit before, unless there is
# uncommitted work. A clone that holds neither, a first commit and a folder without git have nothing to compare with.
# `git archive` and not buf's own `.git#ref=`, which knows neither work trees nor the shallow clones of CI.
[private]
check-contract:
    #!/usr/bin/env bash
    set -euo pipefail
    landed=
    for main in origin/HEAD origin/main main HEAD; do
        landed=$(git merge-base HEAD "$main" 2>/dev/null) && break
    done
    if [ -n "$landed" ] && [ "$landed" = "$(git rev-parse HEAD)" ] && git diff --quiet HEAD -- proto; then
        landed=$(git rev-parse --quiet --verify HEAD^) || landed=
    fi
    if [ -z "$landed" ] || ! git rev-parse --quiet --verify "$landed:proto" > /dev/null; then
        echo "check-contract: nothing that landed before is here to compare with"
        exit
    fi
    before=$(mktemp -d)
    trap 'rm -r "$before"' EXIT
    git archive "$landed" proto | tar --extract --directory "$before"
    {{uv}} run buf breaking --against "$before/proto"

# What is generated is what the proto files say.
[private]
check-generated:
    fresh=$(mktemp -d) && trap 'rm -r "$fresh"' EXIT && trap 'exit 1' HUP INT TERM && \
        {{just}} generate "$fresh" && diff --recursive --exclude=__pycache__ generated "$fresh"

# Side by side: the first check of the types takes one core for half a minute.
# Pass every check and every test.
[parallel]
test: check pass-tests

# Compiled code is kept even where the environment says otherwise, so that processes start faster.
[private]
pass-tests:
    PYTHONDONTWRITEBYTECODE= {{uv}} run pytest -n 9 --dist worksteal

# Not a part of `test`: code that parses took 1.7 times the processor time with Python 3.11, where no cheaper way to
# measure branches exists. Processes that a test starts with an environment of their own are not measured. A test that
# fails because it is slowed down does not end it.
# Which lines and branches the tests run; fails below the floor in pyproject.toml.
coverage:
    {{uv}} run coverage erase
    -{{uv}} run coverage run -m pytest -n 9 --dist worksteal
    {{uv}} run coverage combine --quiet
    {{uv}} run coverage report

# Pass every test with each supported Python that this machine has.
pythons:
    #!/usr/bin/env bash
    set -euo pipefail
    made=$(mktemp -d)
    trap 'rm -r "$made"' EXIT
    for version in 3.11 3.12 3.13 3.14 3.15; do
        if {{uv}} python find --no-project "$version" > /dev/null 2>&1; then
            echo "== Python $version"
            # Not --isolated: the recipes that tests run use this environment as well, and so this Python.
            UV_PROJECT_ENVIRONMENT="$made/$version" {{uv}} run --python "$version" pytest -q -n 9 --dist worksteal
        else
            echo "== Python $version is not here: {{uv}} python install $version"
        fi
    done

# Try random histories of deliveries, faults and kills for so many minutes.
[no-exit-message]
soak minutes="10" workers="4":
    @PRECALL_SOAK_MINUTES={{minutes}} exec {{uv}} run pytest -q -n {{workers}} tests/property

# This system beside a monolith that does the same, in under three minutes; --long also says what lasts.
[no-exit-message]
bench *options:
    @UV_PROJECT_ENVIRONMENT=.venv {{uv}} sync --quiet --locked --project benchmarks/peer
    @exec {{uv}} run python -m benchmarks {{options}}

# What strangers cost the gateway: memory, and whether deliveries still arrive. Takes three minutes.
[no-exit-message]
strangers:
    @exec {{uv}} run python -m benchmarks.strangers

# What a crowd costs a cloner, with the token and without: memory, and whether other callers are answered.
[no-exit-message]
crowds:
    @exec {{uv}} run python -m benchmarks.door

# What more work than can be done costs, and how it is answered. Takes five minutes.
[no-exit-message]
floods *kinds:
    @exec {{uv}} run python -m benchmarks.floods {{kinds}}
