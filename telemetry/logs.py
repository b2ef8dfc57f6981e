"""Log lines of a process: text or JSON, to standard output, each with its trace and the facts of its work.

The text of a foreign exception can hold anything, even a caller's name or a request's body. So an exception
is logged as its type and the place where it was raised, never as its text.
"""

import logging
import sys
from collections.abc import Iterable
from types import TracebackType
from typing import Literal

import structlog
from opentelemetry.trace import format_span_id, format_trace_id, get_current_span
from structlog.typing import EventDict, Processor, WrappedLogger

from environment import Remark
from telemetry.facts import keyed
from telemetry.output import Output

__all__ = ["add_keys", "add_trace", "configure", "exception_place", "log_ready", "log_remarks"]

# These log for every request what the spans say better, or show the values of an SQL statement or a URL.
NOISY = ("alembic", "httpcore", "httpx", "psycopg", "sqlalchemy", "urllib3", "uvicorn.access")
# Its lines hold URLs, which may hold secrets, and texts of exceptions. `telemetry.losses` says what counts.
EXPORTERS = "opentelemetry.exporter"
READY = "ready"
# What grpc.aio logs, as an error, where a client goes before its answer is written: any client may.
GRPC, CLIENT_GONE = "grpc._cython.cygrpc", "ExecuteBatchError"


def configure(
    service: str, *, level: str, form: Literal["text", "json"], output: logging.Handler | None = None
) -> None:
    """Sends every log line of this process, libraries' included, to standard output in one form.

    Without an `output`, whoever logs waits until standard output has taken the line.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        _add_service(service),
        add_trace,
        _add_exception,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_keys,
    ]
    renderer: Processor = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.processors.LogfmtRenderer(
            key_order=["timestamp", "level", "service.name", "event"], bool_as_flag=False
        )
    )
    structlog.configure(
        # First, so that a line below the level costs next to nothing.
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = output or logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_first_line, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.getLogger(EXPORTERS).setLevel(logging.CRITICAL + 1)
    logging.getLogger(GRPC).addFilter(_lowered)
    for name in NOISY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def log_remarks(remarks: Iterable[Remark]) -> None:
    """Logs a line for each remark: an error if it is severe, else a warning."""
    log = structlog.get_logger()
    for remark in remarks:
        log.log(
            logging.ERROR if remark.is_severe else logging.WARNING,
            remark.event,
            variable=remark.variable,
            **remark.facts,
        )


def log_ready(process: str, address: str, *, form: Literal["text", "json"], output: Output) -> None:
    """Writes, at any log level, the one line that says that a process serves, and at which address."""
    sentence = f"{process} ready on {address}"
    if form == "text":
        output.write(sentence)
        return
    # The level of the root stays what was set.
    logging.getLogger(READY).setLevel(logging.INFO)
    structlog.get_logger(READY).info(sentence, address=address)


def exception_place(failure: BaseException) -> str:
    """The type of an exception and the place that raised it, without its text."""
    trace: TracebackType | None = failure.__traceback__
    if trace is None:
        return type(failure).__qualname__
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    return f"{type(failure).__qualname__} at {code.co_filename}:{trace.tb_lineno} in {code.co_qualname}"


def _add_service(service: str) -> Processor:
    def add(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event.setdefault("service", service)
        return event

    return add


def add_trace(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Adds the ids of the span in which a line was written."""
    context = get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = format_trace_id(context.trace_id)
        event["span_id"] = format_span_id(context.span_id)
    return event


def add_keys(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Renames the facts of a line to the keys that spans use."""
    return keyed(event)


def _lowered(record: logging.LogRecord) -> bool:
    """Makes what strangers can cause at will a line of the level INFO."""
    kind = record.exc_info[0] if record.exc_info else None
    if kind is not None and kind.__name__ == CLIENT_GONE:
        record.levelno, record.levelname = logging.INFO, "INFO"
    return logging.getLogger().isEnabledFor(record.levelno)


def _first_line(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    # asyncio puts the representation of a failed task, its exception included, into the further lines.
    event["event"] = str(event["event"]).partition("\n")[0]
    return event


def _add_exception(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    raised = event.pop("exc_info", None)
    if raised is True:
        raised = sys.exc_info()[1]
    elif isinstance(raised, tuple):
        raised = raised[1]
    if isinstance(raised, BaseException):
        event["exception"] = exception_place(raised)
    return event
