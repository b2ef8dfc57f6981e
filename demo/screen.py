"""What the demo writes to the terminal, whatever its width: no line is cut, and no id is broken."""

import json
import textwrap
import time
from typing import Any

from rich.console import Console
from rich.json import JSON
from rich.status import Status
from rich.text import Text

from demo.waterfall import Bar, waterfall

__all__ = ["Screen"]

# The main fields of an answer; --verbose shows the others.
WORTH_SHOWING = (
    "status", "reason", "error_message", "voice_id", "voice_reused", "agent_updated", "processing_time_ms",
    "conversation_config_override",
)  # fmt: skip
# Small steps within a hop, which --verbose shows as well.
STEPS = ("receive body", "registry ")


class Screen:
    """A console with a status line that says what is being waited for."""

    def __init__(self, console: Console, status: Status, *, verbose: bool) -> None:
        self._console = console
        self._status = status
        self._verbose = verbose

    def busy(self, doing: str) -> None:
        """Shows what is being waited for."""
        self._status.update(doing)

    def tell(self, title: str, *lines: str) -> None:
        """Prints a line, and indented below it what belongs to it."""
        self._print(title, style="bold")
        for line in lines:
            self._print(line, indent="  ")

    def paste(self, title: str, *commands: str) -> None:
        """Prints commands to copy: as they are, since a line break of ours would be part of them."""
        self._print(title, style="bold")
        for command in commands:
            self._console.print(Text(command), soft_wrap=True)

    def heading(self, title: str) -> None:
        """Begins a part."""
        self._console.rule(title)

    def answer(self, content: dict[str, Any]) -> None:
        """Prints the JSON of an answer: its main fields, or all."""
        if self._verbose:
            self._console.print_json(json.dumps(content))
            return
        short = {name: content[name] for name in WORTH_SHOWING if content.get(name) is not None}
        text = JSON(json.dumps(short), indent=None, ensure_ascii=False).text
        text.no_wrap = False
        self._console.print(text)

    def trace(self, trace_id: str, spans: list[Bar]) -> None:
        """Draws a trace: who asked whom, or every step."""
        shown = [span for span in spans if self._verbose or not span.name.startswith(STEPS)]
        self._console.print(waterfall(trace_id, shown, width=self._console.width))

    def since(self, moment: float) -> str:
        """The time since that moment of the monotonic clock."""
        return f"{time.monotonic() - moment:.1f} s"

    def _print(self, line: str, *, indent: str = "", style: str = "") -> None:
        lines = textwrap.wrap(
            line, self._console.width, initial_indent=indent, subsequent_indent=f"{indent}  ",
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
        self._console.print(Text("\n".join(lines), style=style), soft_wrap=True)
