"""Reads telephone numbers, names and ids, in the same way for every process.

The gateway and the cloner never import each other, and must never disagree on who a caller is or what they
refuse. So the rules that both need are here: pure functions from text to text, which know neither process.
"""

from callerid.fields import (
    ID,
    MAX_BIRTH,
    MAX_CALL_ID,
    MAX_CONSENT,
    MAX_CONVERSATION_ID,
    MAX_ID,
    MAX_NAME,
    conversation,
    fault_of,
    identifier,
)
from callerid.name import folded, holds_control, holds_lost, spaced, spoken
from callerid.number import LONGEST, LONGEST_ADDRESS, e164, longest, region_fault
from callerid.person import identify_person

__all__ = [
    "ID",
    "LONGEST",
    "LONGEST_ADDRESS",
    "MAX_BIRTH",
    "MAX_CALL_ID",
    "MAX_CONSENT",
    "MAX_CONVERSATION_ID",
    "MAX_ID",
    "MAX_NAME",
    "conversation",
    "e164",
    "fault_of",
    "folded",
    "holds_control",
    "holds_lost",
    "identifier",
    "identify_person",
    "longest",
    "region_fault",
    "spaced",
    "spoken",
]
