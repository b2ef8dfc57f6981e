# Targets: `precall`, the default, runs both `python -m gateway` and `python -m cloner`;
# `emulator` adds the stand-in for the provider's API and is for trying out only.
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS builder
ENV UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1 \
    UV_PROJECT_ENVIRONMENT=/app/.venv \
    UV_PYTHON_DOWNLOADS=never
RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /build
# The dependencies first: they change less often than our own code, and their layer is kept. Litestar makes examples for
# its schema with polyfactory and faker, which nobody asks for here, and no library is tested here: 32 MB less.
COPY pyproject.toml uv.lock README.md LICENSE ./
COPY client/pyproject.toml client/README.md client/
RUN uv sync --frozen --no-dev --no-install-workspace --no-install-package faker --no-install-package polyfactory \
    && find /app/.venv -type d -name tests -prune -exec rm -r {} +
COPY callerid callerid
COPY cli cli
COPY environment environment
COPY telemetry telemetry
COPY generated generated
COPY client client
COPY cloner cloner
COPY gateway gateway
RUN uv sync --frozen --no-dev --no-editable --no-install-package faker --no-install-package polyfactory

FROM ${PYTHON} AS base
# Nothing is ever installed into a running container, so what could do it goes.
RUN python -m pip uninstall --yes --no-cache-dir setuptools wheel pip \
    && groupadd --gid 10001 precall \
    && useradd --uid 10001 --gid precall --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin precall \
    && install --directory --owner 10001 --group 10001 --mode 0700 /var/lib/precall
ENV PATH=/app/.venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /app
# Owned by root: the processes can read their own code and change nothing of it.
COPY --from=builder /app/.venv .venv
USER 10001:10001
STOPSIGNAL SIGTERM

FROM base AS emulator
COPY emulator emulator
EXPOSE 8090
HEALTHCHECK --interval=10s --timeout=4s --start-period=15s --retries=3 CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('localhost', int(os.environ.get('EMULATOR_PORT') or 8090), timeout=3); c.request('GET', '/emulator/health'); sys.exit(c.getresponse().status != 200)"]
CMD ["python", "-m", "emulator"]

FROM base AS precall
EXPOSE 3005 50051
# The gateway's. For the cloner: --health-cmd "python -m cloner.health", as docker-compose.yml has it.
HEALTHCHECK --interval=10s --timeout=4s --start-period=15s --retries=3 CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('localhost', int(os.environ.get('PRECALL_WEBHOOK_PORT') or 3005), timeout=3); c.request('GET', '/health/live'); sys.exit(c.getresponse().status != 200)"]
CMD ["python", "-m", "gateway"]
