"""Who is calling, read alike by every process: telephone numbers and names.

The gateway and the cloner never import each other, and must never differ in who a caller is or in what
they refuse. So what both need to know of a caller stands here, knows neither of them, and is pure: text
in, text out.
"""

from callerid.name import folded, holds_control, spaced, spoken
from callerid.number import LONGEST, LONGEST_ADDRESS, e164, longest, region_fault

__all__ = [
    "LONGEST",
    "LONGEST_ADDRESS",
    "e164",
    "folded",
    "holds_control",
    "longest",
    "region_fault",
    "spaced",
    "spoken",
]
