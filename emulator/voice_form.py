"""The form that adds or edits a voice, judged as the provider judges it."""

from dataclasses import dataclass
from typing import Any

import msgspec

from emulator.errors import entry, refused, unprocessable
from emulator.form import Part
from emulator.journal import Received
from emulator.voices import Sample, new_id

BOOLEANS = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}


@dataclass(frozen=True, kw_only=True)
class VoiceForm:
    """A form that may be acted upon."""

    name: str
    description: str | None
    labels: dict[str, str] | None
    """None where none were given, or the literal `null` that the vendor's SDK sends then."""
    samples: list[Sample]

    @classmethod
    def read(cls, received: Received, *, needs_files: bool) -> "VoiceForm":
        """The form of a request, or the provider's refusal: what is wrong with fields, else with files."""
        parts = received.form
        if parts is None:
            if received.headers.get("content-type", "").startswith("multipart/form-data"):
                raise refused("unparsable_form")
            parts = ()  # FastAPI misses the fields of a form in any other body
        texts = {part.name: part.text for part in parts if part.text}  # FastAPI takes "" for missing
        files = [part for part in parts if part.name == "files"]
        wrong = _wrong_files(files, needs_files=needs_files)
        if "name" not in texts:
            wrong.insert(0, entry("missing", ["body", "name"], "Field required"))
        noise = texts.get("remove_background_noise", "false").lower()
        if noise not in BOOLEANS:
            wrong.append(
                entry(
                    "bool_parsing",
                    ["body", "remove_background_noise"],
                    "Input should be a valid boolean, unable to interpret input",
                )
            )
        try:
            labels = msgspec.json.decode(texts.get("labels", "null"), type=dict[str, str] | None)
        except ValueError:
            labels = None
            wrong.append(entry("json_type", ["body", "labels"], "Labels should be a JSON object of strings"))
        if wrong:
            raise unprocessable(*wrong)
        _judge(files)
        return cls(
            name=texts["name"],
            description=texts.get("description"),
            labels=labels,
            samples=[_sample(file, remove_background_noise=BOOLEANS[noise]) for file in files],
        )


def _wrong_files(files: list[Part], *, needs_files: bool) -> list[dict[str, Any]]:
    """What FastAPI says of the `files` before anybody looks into them."""
    if needs_files and not files:
        return [entry("missing", ["body", "files"], "Field required")]
    return [
        entry(
            "value_error",
            ["body", "files", index],
            "Value error, Expected UploadFile, received: <class 'str'>",
        )
        for index, file in enumerate(files)
        if file.filename is None
    ]


def _judge(files: list[Part]) -> None:
    """Refuse files that are not audio, and the same one twice."""
    if not all(file.is_audio for file in files):
        raise refused("invalid_content")
    if len({file.sha256 for file in files}) < len(files):
        raise refused("duplicate_files")


def _sample(file: Part, *, remove_background_noise: bool) -> Sample:
    return Sample(
        sample_id=new_id(),
        file_name=file.filename or "",
        mime_type=file.content_type,
        size_bytes=file.size,
        hash=file.sha256,
        remove_background_noise=remove_background_noise,
    )
