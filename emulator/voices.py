"""The voices of the workspace, its slots and its monthly counter.

`Voices` is changed by the provider's routes, and may be changed by a test at any time.
"""

import secrets
import string
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated

import msgspec

from emulator.errors import MONTHLY_LIMIT, VOICE_LIMIT, not_found, refused
from emulator.faults import SearchLag

Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Sample(msgspec.Struct, kw_only=True):
    """A recording that a voice was made of; the recording itself is not kept."""

    sample_id: str
    file_name: str
    mime_type: str
    size_bytes: int
    hash: str
    """Here the SHA-256 of the file, in hex; the provider does not say what its own is."""
    duration_secs: float | None = None
    """Never known here, because nothing is decoded."""
    remove_background_noise: bool = False


class VoiceSettings(msgspec.Struct, kw_only=True):
    """How a voice is rendered."""

    stability: Fraction = 0.5
    similarity_boost: Fraction = 0.75
    style: Fraction = 0.0
    use_speaker_boost: bool = True
    speed: Annotated[float, msgspec.Meta(ge=0.7, le=1.2)] = 1.0


class Verification(msgspec.Struct, kw_only=True):
    """Whether a voice may be used yet."""

    requires_verification: bool = False
    is_verified: bool = False
    verification_failures: list[str] = []
    verification_attempts_count: int = 0
    language: str | None = None
    verification_attempts: list[dict[str, str]] | None = None


class Voice(msgspec.Struct, kw_only=True):
    """A voice, field by field as the provider's `GET /v1/voices/{voice_id}` shows it."""

    voice_id: str
    name: str
    category: str = "cloned"
    """`cloned` and `premade` are what the emulator itself makes."""
    labels: dict[str, str] = {}
    description: str | None = None
    samples: list[Sample] | None = None
    settings: VoiceSettings = msgspec.field(default_factory=VoiceSettings)
    voice_verification: Verification = msgspec.field(default_factory=Verification)
    is_owner: bool = True
    created_at_unix: int | None = None
    preview_url: str | None = None
    available_for_tiers: list[str] = []
    high_quality_base_model_ids: list[str] = []
    fine_tuning: dict[str, str] | None = None
    sharing: dict[str, str] | None = None
    verified_languages: list[dict[str, str]] = []
    collection_ids: list[str] = []
    safety_control: str | None = None
    permission_on_resource: str | None = "admin"
    is_legacy: bool = False
    is_mixed: bool = False
    favorited_at_unix: int | None = None

    @property
    def is_premade(self) -> bool:
        """One of the provider's own, which takes no slot and cannot be changed."""
        return self.category == "premade"

    @property
    def awaits_verification(self) -> bool:
        """One that nobody may use yet."""
        return self.voice_verification.requires_verification and not self.voice_verification.is_verified


PREMADE = (
    (
        "EXAVITQu4vr4xnSDxMaL",
        "Sarah",
        {"gender": "female", "age": "young", "accent": "american", "language": "en"},
    ),
    (
        "JBFqnCBsd6RMkjVDRZzb",
        "George",
        {"gender": "male", "age": "middle_aged", "accent": "british", "language": "en"},
    ),
    (
        "XrExE9yKIg1WjnnlVkGX",
        "Matilda",
        {"gender": "female", "age": "middle_aged", "accent": "american", "language": "en"},
    ),
)


class Voices:
    """All voices, oldest first, under the limits of a plan."""

    def __init__(self, *, limit: int, monthly_limit: int | None, clock: Callable[[], float]) -> None:
        """Start with the premade voices, no clones and nothing used up."""
        self.limit = limit
        self.monthly_limit = monthly_limit
        self.monthly_used = 0
        self._clock = clock
        self._lags: dict[str, tuple[float, int]] = {}
        self._voices = {
            voice_id: Voice(
                voice_id=voice_id,
                name=name,
                category="premade",
                labels=labels,
                is_owner=False,
                permission_on_resource="viewer",
            )
            for voice_id, name, labels in PREMADE
        }

    def __iter__(self) -> Iterator[Voice]:
        """All of them, premade included."""
        return iter(tuple(self._voices.values()))

    def __contains__(self, voice_id: object) -> bool:
        """Whether there is a voice of that id."""
        return voice_id in self._voices

    def __getitem__(self, voice_id: str) -> Voice:
        """The voice of that id, or `KeyError`."""
        return self._voices[voice_id]

    @property
    def custom(self) -> list[Voice]:
        """Those that take a slot each."""
        return [voice for voice in self if not voice.is_premade]

    def find(self, voice_id: str) -> Voice:
        """The voice of that id, or the provider's refusal."""
        try:
            return self._voices[voice_id]
        except KeyError:
            message = f"A voice with the voice_id {voice_id} was not found."
            raise not_found("voice_not_found", voice_id, message) from None

    def owned(self, voice_id: str) -> Voice:
        """The voice of that id if it may be changed, or the provider's refusal."""
        voice = self.find(voice_id)
        if not voice.is_owner:
            raise refused("voice_access_denied", "You do not have permission to change this voice.")
        return voice

    @property
    def month_ends(self) -> int:
        """When the next month begins, in Unix seconds: the monthly counter is said to start again then."""
        first = datetime.fromtimestamp(self._clock(), UTC).replace(
            day=1, hour=0, minute=0, second=0, microsecond=0
        )
        return int((first + timedelta(days=31)).replace(day=1).timestamp())

    def require_slot(self) -> None:
        """Refuse if no slot is free, or if no operation is left in the month."""
        if len(self.custom) >= self.limit:
            raise refused("voice_limit_reached", VOICE_LIMIT.format(self.limit))
        self.require_operation()

    def require_operation(self) -> None:
        """Refuse if no voice may be added or edited any more in the month."""
        if self.monthly_limit is not None and self.monthly_used >= self.monthly_limit:
            raise refused("voice_add_edit_limit_reached", MONTHLY_LIMIT.format(self.monthly_limit))

    def add(
        self,
        *,
        name: str,
        description: str | None,
        labels: dict[str, str],
        samples: list[Sample],
        requires_verification: bool = False,
        lag: SearchLag | None = None,
    ) -> Voice:
        """Make a voice, taking a slot and an operation, or refuse and take neither."""
        self.require_slot()
        voice = Voice(
            voice_id=new_id(),
            name=name,
            description=description,
            labels=labels,
            samples=samples,
            voice_verification=Verification(requires_verification=requires_verification),
            created_at_unix=int(self._clock()),
        )
        self.monthly_used += 1
        if lag is not None:
            self._lags[voice.voice_id] = (self._clock() + lag.seconds, lag.searches)
        return self.put(voice)

    def edit(
        self,
        voice_id: str,
        *,
        name: str,
        description: str | None,
        labels: dict[str, str] | None,
        samples: list[Sample],
    ) -> None:
        """Rename a voice and change what else is given, taking an operation."""
        voice = self.owned(voice_id)
        self.require_operation()
        self.monthly_used += 1
        voice.name = name
        voice.samples = [*(voice.samples or []), *samples]
        if description is not None:
            voice.description = description
        if labels is not None:
            voice.labels = labels

    def put(self, voice: Voice) -> Voice:
        """Place a voice as it is, past all limits and counters."""
        self._voices[voice.voice_id] = voice
        return voice

    def remove(self, voice_id: str) -> None:
        """Delete a voice: its slot is free, its operation stays used, agents are left pointing at it."""
        self.owned(voice_id)
        del self._voices[voice_id]
        self._lags.pop(voice_id, None)

    def listed(self, matches: Callable[[Voice], bool] = lambda _: True) -> list[Voice]:
        """The voices of a listing: those that match, without those that the search does not know yet."""
        return [voice for voice in self if matches(voice) and not self._is_missed(voice.voice_id)]

    def _is_missed(self, voice_id: str) -> bool:
        """Whether this listing is one that misses the voice."""
        until, searches = self._lags.get(voice_id, (0.0, 0))
        if searches > 0:
            self._lags[voice_id] = (until, searches - 1)
        return searches > 0 or self._clock() < until


def new_id() -> str:
    """An id as the provider makes them for voices and samples: 20 letters and digits."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(20))
