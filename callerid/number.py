"""The one reader of telephone numbers: whatever a sender writes, E.164 or nothing.

    "+31 (0)6 1234-0012"                           with visual separators, odd spaces, any digits
    "0031612340012", "31612340012"                 00 or nothing for the plus
    "31612340012.0"                                as a spreadsheet saves what it takes for a quantity
    "06 1234 0012"                                 a national form, where DEFAULT_REGION says of which country
    "tel:+31-6-12340012;ext=5"                     RFC 3966, phone-context included
    "sip:+31612340012;npdi@10.0.0.1;user=phone"    the user part, never the host
    "whatsapp:31612340012", "31612340012@s.whatsapp.net"
                                                   an id of WhatsApp: the digits begin with the country
    '"Anna" <sip:+31612340012@example.com>;tag=1'  the address, never the display name

Only a number that is possible in its numbering plan counts. Any other text in its place ("anonymous", zeros,
an IP address, an extension of a switchboard) is shared by many people, so it counts as no number and
identifies nobody. The plans are those of libphonenumber, which learns of a new range some weeks after it was
opened. Until then a number in that range counts as none: its caller may get no voice, but is never confused
with another.

Some plans have numbers as short as an extension or as a local number without its area, so few digits count
only where little is left to guess: `SHORTEST` and `SHORTEST_GUESS`.

Numbers of Mexico, Brazil and Benin are also read in the form that they had before their plans changed,
because WhatsApp still uses it for its ids: `FORMER`.

An extension behind a number is dropped: the number means the line, and the name says who speaks on it.
"""

import re
import unicodedata
from functools import lru_cache
from urllib.parse import unquote

import phonenumbers
from phonenumbers import PhoneNumber, PhoneNumberFormat

__all__ = ["LONGEST", "LONGEST_ADDRESS", "e164", "longest", "region_fault"]

# How many characters a written number may have; an address also has a host, names and tags.
LONGEST = 64
LONGEST_ADDRESS = 256

# How telephone networks and Twilio write "anonymous", "restricted", "blocked", "unknown" and "unavailable".
WITHHELD = frozenset({"266696687", "7378742833", "2562533", "8656696", "86282452253"})
# After these words behind its "@", a WhatsApp id is no person's number, even if its digits look like one.
NO_PERSON = frozenset({"lid", "hosted.lid", "g.us", "broadcast", "newsletter"})
# After these it is a number whose plus is left out.
WHATSAPP = frozenset({"s.whatsapp.net", "whatsapp.net", "c.us", "wa.meta.vc"})

# Blanks that Unicode does not count as spaces, and invisible marks.
BLANK = dict.fromkeys(map(ord, "\t\n\v\f\r\x85\u2800\u115f\u1160\u3164\uffa0"), " ")
HIDDEN = re.compile("[\u034f\u20e3\ufe00-\ufe0f]")
SIGNS = str.maketrans({"\u2795": "+", "\u2212": "-", "\u00b7": ".", "\u2022": ".", "\u30fb": "."})

# One entry of a list of addresses; quoted texts and what stands in angle brackets may hold commas.
# Atomic groups, as until Python 3.11.5 `(?:...)*+` may match too little (cpython issue 106052).
ENTRY = re.compile(r'(?>(?:"(?>(?:\\.|[^"\\])*)"|<[^<>]*+>|[^,"<>])+)')
ANGLED = re.compile(r'(?>(?:"(?>(?:\\.|[^"\\])*)"|[^<"])*)<([^<>]*+)>')
SCHEME = re.compile(r"\s*([a-z][a-z0-9+.-]*)\s*:\s*(?://)?", re.IGNORECASE)
SCHEMES = frozenset({"tel", "sip", "sips", "whatsapp", "sms", "callto"})
CONTEXT = re.compile(r";\s*phone-context\s*=\s*(\+[0-9().\s-]+)", re.IGNORECASE)
EXTENSION = re.compile(r"(?:extension|ext|x|#)\s*[.:=]?\s*[0-9]{1,7}\s*$", re.IGNORECASE)
PLAIN = re.compile(r"\+[1-9][0-9]{1,23}")
WRITTEN = re.compile(r"[\s(]*(\+[\s+]*)?([0-9\s./()~-]+)")
ADDRESS = re.compile(r"\s*[0-9]{1,3}(?:\.[0-9]{1,3}){3}\s*")
# What spreadsheets and data frames add to a number that they take for a quantity.
DECIMAL = re.compile(r"(?<=[0-9]{6})\.0\s*$")
MOST_DIGITS = 24

# Fewer digits without a plus are an extension of some switchboard, in every country.
SHORTEST = 6
# Fewer digits are not taken for a number that lacks its plus or its leading 0.
SHORTEST_GUESS = 8

# What became of each number, one by one, when its plan was changed. Brazil put a 9 before mobile numbers
# alone, and not before all of those with 7; fixed ones begin with 2 to 5.
FORMER = (
    (re.compile("521([0-9]{10})"), r"52\1"),
    (re.compile("(55[0-9]{2})([689][0-9]{7})"), r"\g<1>9\2"),
    (re.compile("229([0-9]{8})"), r"22901\1"),
)


def longest(text: str) -> int:
    """How many characters the text may have: an address may be longer than a plain number."""
    return LONGEST_ADDRESS if re.search("[:@<]", text) else LONGEST


def region_fault(region: str | None) -> str:
    """What is wrong with DEFAULT_REGION; empty if it is not set, or a country's letters (ISO 3166)."""
    if region is None or region.upper() in phonenumbers.SUPPORTED_REGIONS:
        return ""
    return "DEFAULT_REGION: expected the two letters of a country, such as NL"


# One request asks for the same number several times, and each time all of the plans would be searched.
@lru_cache(maxsize=64)
def e164(text: str, region: str | None) -> str | None:
    """The number as "+" and digits; None where there is no number, or several. Never raises.

    `region` is the country in which a national form is read; without one it counts as no number.
    """
    if PLAIN.fullmatch(text):
        return _read(text, region, None)
    if len(text) > longest(text):
        return None
    entries = ENTRY.findall(_plain(text))
    # A display name may hold commas and numbers: only the text within brackets counts beside it.
    angled = [found[1] for entry in entries if (found := ANGLED.match(entry))]
    numbers = {number for entry in angled or entries if (number := _number_of_address(entry, region))}
    return numbers.pop() if len(numbers) == 1 else None


def _plain(text: str) -> str:
    """The text with plain digits, spaces and signs, and without invisible characters."""
    text = unicodedata.normalize("NFKC", text.translate(BLANK)).translate(SIGNS).translate(BLANK)
    return "".join(_character(character) for character in HIDDEN.sub("", text))


def _character(character: str) -> str:
    match unicodedata.category(character):
        case "Cf":
            return ""
        case "Zs" | "Zl" | "Zp":
            return " "
        case "Pd":
            return "-"
        case "Nd":
            return str(unicodedata.decimal(character))
        case _:
            return character


def _number_of_address(address: str, region: str | None) -> str | None:
    """The number of one address, or of a bare number."""
    scheme = SCHEME.match(address)
    if scheme is not None:
        if scheme[1].lower() not in SCHEMES:
            return None
        address = address[scheme.end() :]
    user, at, host = address.partition("@")
    domain = re.split("[;:?>/]", host, maxsplit=1)[0].strip().lower()
    if domain in NO_PERSON:
        return None
    if domain in WHATSAPP:
        user = user.partition(".")[0]  # "31612340012.0:12" is a device of that number
    if domain in WHATSAPP or (scheme is not None and scheme[1].lower() == "whatsapp"):
        user = f"+{user}"
    context = CONTEXT.search(address)
    if scheme is not None or at:
        # Parameters, and in a SIP address a password, follow the number.
        user = re.split("[;:?]", user, maxsplit=1)[0]
    # Without a scheme, what follows may as well be another number.
    parts = _plain(unquote(user)).split(";")
    prefix = context[1] if context else None
    numbers = {number for part in parts if (number := _read(EXTENSION.sub("", part), region, prefix))}
    return numbers.pop() if len(numbers) == 1 else None


def _read(written: str, region: str | None, context: str | None) -> str | None:
    written = DECIMAL.sub("", written)
    found = WRITTEN.fullmatch(written)
    digits = _digits(found[2]) if found is not None else ""
    if found is None or len(digits) > MOST_DIGITS or digits in WITHHELD or _is_ip_address(written):
        return None
    international = found[1] is not None
    if not international and context is not None:
        international, digits = True, _digits(context) + digits
    number = (_international(digits) if international else _bare(digits, region)) or _former(digits)
    return None if number is None else phonenumbers.format_number(number, PhoneNumberFormat.E164)


def _international(digits: str) -> PhoneNumber | None:
    return _valid("+" + digits.removeprefix("00"), None)


def _bare(digits: str, region: str | None) -> PhoneNumber | None:
    """The number of digits without a plus sign."""
    if digits.startswith("00") and (number := _international(digits)) is not None:
        return number
    if len(digits) < SHORTEST:
        return None
    national = _valid(digits, region) if region is not None else None
    if national is not None:
        written = phonenumbers.format_number(national, PhoneNumberFormat.NATIONAL)
        if _digits(written) == digits:
            return national
    if len(digits) < SHORTEST_GUESS:
        return None
    # It is no national form of the country, so the plus is missing rather than the leading 0.
    return _international(digits) or national


def _former(digits: str) -> PhoneNumber | None:
    """The present form of a number that is written as it was before its country's plan changed."""
    digits = digits.removeprefix("00")
    for pattern, now in FORMER:
        if found := pattern.fullmatch(digits):
            return _international(found.expand(now))
    return None


def _is_ip_address(written: str) -> bool:
    return bool(ADDRESS.fullmatch(written)) and all(int(part) < 256 for part in written.split("."))


def _digits(text: str) -> str:
    return "".join(re.findall("[0-9]", text))


def _valid(digits: str, region: str | None) -> PhoneNumber | None:
    try:
        number = phonenumbers.parse(digits, region and region.upper())
    except phonenumbers.NumberParseException:
        return None
    return number if phonenumbers.is_valid_number(number) else None
