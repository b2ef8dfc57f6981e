# The uv that runs this recipe, or the one on the path.
uv := env("UV", "uv")

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

# Stop the containers.
down:
    docker compose down

# Write the Python code of the proto files.
generate into="generated":
    {{uv}} run python -m grpc_tools.protoc --proto_path=proto --python_out={{into}} --grpc_python_out={{into}} \
        --mypy_out=quiet:{{into}} --mypy_grpc_out=quiet:{{into}} precall/v1/cloning.proto precall/v1/error_reason.proto

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
    {{just_executable()}} check-generated
    {{uv}} run hadolint Dockerfile
    {{uv}} run shellcheck .ci/run

# What is generated is what the proto files say.
[private]
check-generated:
    fresh=$(mktemp -d) && trap 'rm -r "$fresh"' EXIT && trap 'exit 1' HUP INT TERM && \
        {{just_executable()}} generate "$fresh" && diff --recursive --exclude=__pycache__ generated "$fresh"

# Pass every check and every test.
test: check
    {{uv}} run pytest -n 4 --dist worksteal

# Try random histories of deliveries, faults and kills for so many minutes.
[no-exit-message]
soak minutes="10":
    @PRECALL_SOAK_MINUTES={{minutes}} exec {{uv}} run pytest -q -n 2 tests/property

# What one delivery costs: CPU time and memory of both processes.
bench:
    {{uv}} run python -m benchmarks

# What strangers cost the gateway: memory, and whether deliveries still arrive. Takes three minutes.
strangers:
    {{uv}} run python -m benchmarks.strangers

# What more work than can be done costs, and how it is answered. Takes five minutes.
floods *kinds:
    {{uv}} run python -m benchmarks.floods {{kinds}}
