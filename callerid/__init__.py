"""Reads telephone numbers and names, in the same way for every process.

The gateway and the cloner never import each other, and must never disagree on who a caller is or what they
refuse. So the rules that both need are here: pure functions from text to text, which know neither process.
"""

from callerid.name import folded, holds_control, spaced, spoken
from callerid.number import LONGEST, LONGEST_ADDRESS, e164, longest, region_fault
from callerid.person import identify_person

__all__ = [
    "LONGEST",
    "LONGEST_ADDRESS",
    "e164",
    "folded",
    "holds_control",
    "identify_person",
    "longest",
    "region_fault",
    "spaced",
    "spoken",
]
