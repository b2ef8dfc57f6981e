"""`GET /v2/voices`: which voices match, in which order, page by page."""

import base64
from typing import Annotated, Literal

import msgspec

from emulator.errors import refused
from emulator.voices import Voice, Voices

LISTS = ("language", "use_cases", "voice_ids")
"""The parts of a query that may come more than once."""


class VoiceQuery(msgspec.Struct, kw_only=True):
    """The query of one search, as the provider names its parts; unknown ones are ignored."""

    search: str | None = None
    page_size: Annotated[int, msgspec.Meta(ge=1, le=100)] = 10
    next_page_token: str | None = None
    sort: Literal["created_at_unix", "name"] = "created_at_unix"
    sort_direction: Literal["asc", "desc"] = "desc"
    voice_type: (
        Literal["personal", "community", "default", "workspace", "non-default", "non-community", "saved"]
        | None
    ) = None
    category: Literal["premade", "cloned", "generated", "professional"] | None = None
    gender: str | None = None
    age: str | None = None
    accent: str | None = None
    language: list[str] = []
    use_cases: list[str] = []
    voice_ids: Annotated[list[str], msgspec.Meta(max_length=100)] = []
    collection_id: str | None = None
    include_total_count: bool = True

    def matches(self, voice: Voice) -> bool:
        """Whether the voice is among the answers, on any page."""
        labels = voice.labels
        return (
            self._matches_text(voice)
            and self._matches_type(voice)
            and self.category in (None, voice.category)
            and self.gender in (None, labels.get("gender"))
            and self.age in (None, labels.get("age"))
            and self.accent in (None, labels.get("accent"))
            and (not self.language or labels.get("language") in self.language)
            and (not self.use_cases or labels.get("use_case") in self.use_cases)
            and (not self.voice_ids or voice.voice_id in self.voice_ids)
            and (self.collection_id is None or self.collection_id in voice.collection_ids)
        )

    def _matches_text(self, voice: Voice) -> bool:
        text = (voice.name, voice.description or "", voice.category, *voice.labels.values())
        return self.search is None or any(self.search.casefold() in part.casefold() for part in text)

    def _matches_type(self, voice: Voice) -> bool:
        match self.voice_type:
            case None:
                return True
            case "default":
                return voice.is_premade
            case "community":  # library voices, of which there are none here
                return False
            case _:
                return not voice.is_premade

    def asks_for_premade(self) -> bool:
        """Whether premade voices are what was asked for, not an addition to it."""
        return self.voice_type == "default" or self.category == "premade" or bool(self.voice_ids)

    def rank(self, voice: Voice) -> tuple[int | str, str]:
        """The place of the voice in the order; no two voices have the same."""
        by_name = self.sort == "name"
        return (voice.name if by_name else voice.created_at_unix or 0), voice.voice_id


class VoicePage(msgspec.Struct, kw_only=True):
    """The answer to one search."""

    voices: list[Voice]
    has_more: bool
    total_count: int
    next_page_token: str | None


def search(voices: Voices, query: VoiceQuery, *, default_voices: bool = False) -> VoicePage:
    """One page of what matches.

    A token stands for the last voice shown, so voices that come and go between two pages shift nothing.
    Premade voices, unless they were asked for, come on top of `page_size` on the first page, as they do at
    the provider: those that match, or with `default_voices` all of them.
    """
    found = voices.listed(query.matches)
    asked_for = query.asks_for_premade()
    descending = query.sort_direction == "desc"
    paged = sorted(
        (voice for voice in found if asked_for or not voice.is_premade), key=query.rank, reverse=descending
    )
    added: list[Voice] = []
    if query.next_page_token is not None:
        last = _read_token(query.next_page_token, query)
        paged = [v for v in paged if (query.rank(v) < last if descending else query.rank(v) > last)]
    elif not asked_for:
        added = [voice for voice in (voices if default_voices else found) if voice.is_premade]
    shown = paged[: query.page_size]
    has_more = len(paged) > len(shown)
    return VoicePage(
        voices=added + shown,
        has_more=has_more,
        total_count=len(found) if query.include_total_count else 0,
        next_page_token=_write_token(query.rank(shown[-1])) if has_more else None,
    )


def _write_token(rank: tuple[int | str, str]) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(rank)).decode()


def _read_token(token: str, query: VoiceQuery) -> tuple[int | str, str]:
    """The rank a token stands for; refused unless an earlier page of the same order gave it."""
    try:
        text = base64.urlsafe_b64decode(token)
        if query.sort == "name":
            return msgspec.json.decode(text, type=tuple[str, str])
        return msgspec.json.decode(text, type=tuple[int, str])
    except ValueError as error:  # not base64, not JSON, or of another order
        raise refused("invalid_parameters", "Invalid next_page_token.") from error
