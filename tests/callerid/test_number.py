import phonenumbers
import pytest

from callerid import LONGEST, LONGEST_ADDRESS, e164, longest, region_fault

PERSON = "+31612340012"


@pytest.mark.parametrize(
    "text",
    [
        "+31612340012", " +31612340012\n", "+31 6 1234 0012", "+31-6-1234-0012", "+31.6.1234.0012",
        "+31 (0)6 1234 0012", "+31 (0)612340012", "+310612340012", "(+31) 6 12340012", "++31612340012",
        "0031612340012", "00 31 6 1234 0012", "+0031612340012", "0031 (0)6 12340012", "31612340012", "31 6 1234 0012",
        "\u202a+31612340012\u202c", "\u200e+31612340012", "\u2066+31 6\u200b1234\u200d0012\u2069", "\ufeff+31612340012",
        "+31\u00a06\u00a012340012", "+31\u202f6\u20091234\u30000012", "+31\t612340012", "+31\u28006\u316412340012",
        "+31\u20116\u201312340012", "+31\u22126 12340012", "+31\u00ad612340012", "+31\u00b76\u00b712340012",
        "\uff0b\uff13\uff11\uff16\uff11\uff12\uff13\uff14\uff10\uff10\uff11\uff12",
        "+٣١٦١٢٣٤٠٠١٢", "+۳۱۶۱۲۳۴۰۰۱۲", "+३१६१२३४००१२", "\uff0b31612340012",
        "tel:+31612340012", "TEL:+31-6-1234-0012", "tel:+31(6)1234.0012", "tel:+31612340012;ext=5",
        "tel:+31612340012;isub=7;npdi", "tel:0612340012;phone-context=+31", "tel:612340012;phone-context=+31",
        "tel:12340012;phone-context=+31-6", "tel:%2B31612340012", "tel://+31612340012",
        "sip:+31612340012@203.0.113.7", "sips:+31612340012@trunk.example.com:5061;transport=tcp",
        "SIP:+31612340012@host;user=phone", "sip:+31612340012;npdi;rn=+31600000001@host", "sip:31612340012@host",
        "sip:0031612340012@host", "sip:+31612340012:secret@host", "sip:%2B31612340012@host",
        "sip:%2b31%36%31%32340012@host", "sip:+31-6-1234-0012@host", "sip:+31612340012@[2001:db8::1]:5060",
        "sip:+31612340012@host?Replaces=a%40b", "sip:+31612340012", "sip:+31612340012;user=phone", " sip: +31612340012@host",
        "sip:0612340012;phone-context=+31@host;user=phone", "\u200esip:+31612340012@host",
        "<sip:+31612340012@host>", "<sip:+31612340012@host>;tag=as1b2c", '"Anna" <sip:+31612340012@host>;tag=x',
        "Anna <tel:+31612340012>", "Anna de Wit <+31612340012>", '"Wit, Anna <de>" <sip:+31612340012@host>',
        '"a \\" <b" <sip:+31612340012@host>', "Wit, Anna <sip:+31612340012@host>", '"+31687654321" <sip:+31612340012@host>',
        "0687654321, x <sip:+31612340012@host>",
        "<sip:+31612340012@host>, <tel:+31-6-12340012>", "<sip:anna@host>, <tel:+31612340012>",
        "sip:+31612340012@host, tel:+31612340012",
        "+31612340012@host", "31612340012@203.0.113.7", "+31612340012@host:5060;user=phone",
        "whatsapp:+31612340012", "whatsapp:31612340012", "31612340012@s.whatsapp.net", "31612340012:12@s.whatsapp.net",
        "31612340012@c.us", "sms:+31612340012", "%2B31612340012", "31612340012.0:12@s.whatsapp.net",
        "+31612340012 ext 5", "+31612340012 ext. 5", "+31612340012x5", "+31612340012#5", "+31612340012,,5", "+31612340012;ext=5",
        "+31612340012;5", "+31612340012; +31 6 1234 0012", "+31612340012;rn=+31600000001",
        "31612340012.0", "+31612340012.0 ",
    ],
)  # fmt: skip
def test_one_person(text: str) -> None:
    """However a number is written that tells its country, it is that one number, in every country."""
    assert [PERSON] * 4 == [e164(text, region) for region in (None, "NL", "DE", "US")]


@pytest.mark.parametrize(
    "text",
    [
        "0612340012", "06 1234 0012", "06-12340012", "(06) 1234 0012", "06.12.34.00.12", "612340012", "tel:0612340012",
        "sip:0612340012@203.0.113.7;user=phone", "06\u00a01234\u00a00012", "٠٦١٢٣٤٠٠١٢", '"Anna" <sip:0612340012@host>',
        "tel:0612340012;phone-context=example.com",
    ],
)  # fmt: skip
def test_national(text: str) -> None:
    """A national form is a number in its own country, and none where no country is set."""
    assert (PERSON, PERSON, None) == (e164(text, "NL"), e164(text, "nl"), e164(text, None))


@pytest.mark.parametrize(
    ("region", "text", "expected"),
    [
        ("US", "(202) 555-0123", "+12025550123"),
        ("US", "2025550123", "+12025550123"),
        ("US", "12025550123", "+12025550123"),
        ("US", "1-202-555-0123", "+12025550123"),
        ("US", "011 31 6 1234 0012", "+31612340012"),
        ("US", "31612340012", "+31612340012"),
        ("CA", "416 555 0123", "+14165550123"),
        ("DE", "0151 12345678", "+4915112345678"),
        ("DE", "31612340012", "+31612340012"),
        ("DE", "447911123456", "+447911123456"),
        ("DE", "4915112345678", "+4915112345678"),
        ("AT", "31612340012", "+31612340012"),
        ("GB", "07911 123456", "+447911123456"),
        ("GB", "020 7183 8750", "+442071838750"),
        ("FR", "06 12 34 56 78", "+33612345678"),
        ("ES", "612 34 56 78", "+34612345678"),
        ("IT", "06 1234 5678", "+390612345678"),
        ("IT", "333 123 4567", "+393331234567"),
        ("IT", "+39 06 1234 5678", "+390612345678"),
        ("BE", "0470 12 34 56", "+32470123456"),
        ("CN", "13012345678", "+8613012345678"),
        ("BR", "11912345678", "+5511912345678"),
        ("BR", "(11) 91234-5678", "+5511912345678"),
        ("RU", "8 916 123-45-67", "+79161234567"),
        ("JP", "090-1234-5678", "+819012345678"),
        ("JP", "010 31 6 12340012", "+31612340012"),
        ("JP", "0031612340012", "+31612340012"),
        ("AU", "0011 31 6 12340012", "+31612340012"),
        ("HU", "06 20 123 4567", "+36201234567"),
        ("MX", "55 1234 5678", "+525512345678"),
        ("NL", "0800 1234", "+318001234"),
        ("NL", "097 012345678", "+3197012345678"),
    ],
)
def test_of_a_country(region: str, text: str, expected: str) -> None:
    """A number as its country writes it is read so; any other digits are first taken for one without its plus."""
    assert expected == e164(text, region)


@pytest.mark.parametrize(
    "number",
    [
        "+31201234567", "+31850123456", "+31881234567", "+318001234", "+31900123456", "+3197012345678",
        "+12025550123", "+18005551212", "+18885551212", "+442071838750", "+443001234567", "+448001111111",
        "+33612345678", "+33912345678", "+4930123456", "+4915112345678", "+4932221234567", "+436641234567", "+32470123456",
        "+41791234567", "+35312345678", "+390612345678", "+393331234567", "+34612345678", "+46701234567", "+4520123456",
        "+48512345678", "+3545812345", "+37060012345", "+2250701234567", "+2348012345678", "+254712345678", "+27821234567",
        "+5491123456789", "+5511912345678", "+525512345678", "+8613812345678", "+819012345678", "+919876543210",
        "+79161234567", "+971501234567", "+6591234567", "+85251234567", "+61491570156", "+262692123456",
        "+883510001234567", "+870773111632", "+881612345678", "+882161234567", "+80012345678", "+447624123456",
    ],
)  # fmt: skip
def test_every_kind_of_number(number: str) -> None:
    """Mobile, fixed, toll-free, VoIP, machine, satellite and international networks' numbers are numbers."""
    assert (number, number) == (e164(number, None), e164(f"sip:{number[1:]}@host", None))


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "+", "-", "--", ".", "()", "?", "0", "+0", "00", "000", "00000", "0000000000", "+00000000000",
        "+10000000000", "10000000000", "+31000000000", "+310000000000", "0031000000000", "+11111111111", "+1234567890",
        "+19999999999", "+99999999999", "+99912345678", "999999999999999", "1000", "sip:1000@pbx", "101", "+101", "112", "911",
        "anonymous", "Anonymous", "ANONYMOUS", "\uff41nonymous", "anonym", "anoniem", "anônimo", "анонимно", "匿名", "非通知", "مجهول",
        "unknown", "Unknown Caller", "onbekend", "Restricted", "private", "Private Number", "withheld", "unavailable", "blocked",
        "n/a", "N/A", "none", "null", "undefined", "nobody", "caller 1", "asterisk", "ext 12", "nan", "True",
        "sip:anonymous@anonymous.invalid", "sip:anonymous@203.0.113.7", "sip:anonymous@31612340012", "sip:unknown@+31612340012",
        '"Anonymous" <sip:anonymous@anonymous.invalid>;tag=1', "Anonymous <sip:anonymous@203.0.113.7>", "<sip:anonymous@host>",
        '"+31612340012" <sip:anonymous@anonymous.invalid>', "+31612340012 <sip:anonymous@host>", "06-12340012, x <sip:anonymous@host>",
        "sip:%61nonymous@host", "tel:anonymous", "whatsapp:", "tel:", "sip:", "sip:@", "@", "@31612340012", "sip:@203.0.113.7", "<>", "<sip:>",
        "sip:203.0.113.7", "203.0.113.7", "31.61.234.12", "20.123.45.67", "203.0.113.7:5060", "2001:db8::1", "[2001:db8::1]",
        "sip:alice@example.com", "alice@example.com", "alice+31612340012@example.com", "client:alice", "client:+31612340012",
        "urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6", "http://31612340012", "sip:alice31612340012@host",
        "US.13491208655302741918", "123456789012345@lid", "31612340012@lid", "31612340012@hosted.lid", "31612340012-1600000000@g.us", "120363041234567890@g.us",
        "+266696687", "266696687", "+7378742833", "7378742833", "+2562533", "+8656696", "+86282452253", "86282452253", "sip:+266696687@twilio",
        "+1-800-FLOWERS", "0800-FLOWERS", "#31#0612340012", "*31#0612340012", "call +31612340012", "+31612340012 or so",
        "020 1234567; 06 12340012", "+31612340012; +31687654321", "0612340012%3B0687654321",
        "+31612340012, +31687654321", "<sip:+31612340012@host>, <tel:+31687654321>", "+31612340012 +31687654321",
        "+316\x0012345678", "+316\x7f12340012", "\ud800", "+31612340012\ud800", "½", "①②③", "+3161234001", "+316123400123",
        "1" * 64, "+" * 64, "9" * 10_000, "+31612340012" + " " * 60, "<" * 200, '"' * 200, "(" * 64, "a:" * 120, "%" * 60, "tel:" + "%2B" * 60, "x5" * 30,
    ],
)  # fmt: skip
@pytest.mark.parametrize("region", [None, "NL", "US", "DE"])
def test_nobodys_number(text: str, region: str | None) -> None:
    """What many share, or nobody can have, is no number, wherever it is read."""
    assert e164(text, region) is None


@pytest.mark.parametrize(
    ("region", "digits", "expected"),
    [
        ("US", "6598765432", "+6598765432"),
        ("MX", "4520123456", "+4520123456"),
        ("MX", "4791234567", "+4791234567"),
        ("IT", "3725123456", "+3725123456"),
        ("DE", "491701234567", "+491701234567"),
        ("NL", "6837012", "+6837012"),
        ("NL", "0031612340012", PERSON),
        ("NL", "612340012", None),
        ("NL", "0612340012", None),
        ("US", "2025550123", None),
    ],
)
@pytest.mark.parametrize(
    "address",
    [
        "whatsapp:{}", "WhatsApp: {}", "{}@s.whatsapp.net", "{}@C.US", "{}@whatsapp.net", "sip:{}@wa.meta.vc;transport=tls",
        "{}:12@s.whatsapp.net", "{}.0:1@s.whatsapp.net", '"Bob" <whatsapp:{}>', "<{}@c.us>;x=1", "whatsapp:{}@host", "{}@s.whatsapp.net/31",
    ],
)  # fmt: skip
def test_whatsapp(address: str, region: str, digits: str, expected: str | None) -> None:
    """An id of WhatsApp begins with its country, whatever numbers the default country has."""
    assert expected == e164(address.format(digits), region)


@pytest.mark.parametrize(
    ("former", "expected"),
    [
        ("5215512345678", "+525512345678"),
        ("551181234567", "+5511981234567"),
        ("555191234567", "+5551991234567"),
        ("558568123456", "+5585968123456"),
        ("22997123456", "+2290197123456"),
        ("22921301234", "+2290121301234"),
        # These are numbers as they stand: fixed ones, and mobile ones that kept their eight digits.
        ("551131234567", "+551131234567"),
        ("551151234567", "+551151234567"),
        ("551178123456", "+551178123456"),
        # And these were none before, either.
        ("551111234567", None),
        ("552081234567", None),
        ("521551234567", None),
        ("5211512345678", None),
        ("2299712345", None),
    ],
)
def test_former(former: str, expected: str | None) -> None:
    """A number from before its plan was changed is the one that it became."""
    forms = (
        f"+{former}",
        former,
        f"00{former}",
        f"whatsapp:+{former}",
        f"{former}@c.us",
        f"sip:{former}@host",
    )

    assert [expected] * 6 == [e164(form, None) for form in forms]


@pytest.mark.parametrize(
    ("region", "digits", "expected", "with_plus"),
    [
        ("LU", "2022", None, "+3522022"),
        ("LU", "22022", None, "+35222022"),
        ("LU", "224567", "+352224567", "+352224567"),
        ("FI", "12345", None, None),
        ("FI", "912345", None, "+358912345"),
        ("FI", "0912345", "+358912345", "+358912345"),
        ("FO", "212345", "+298212345", "+298212345"),
        ("FK", "22345", None, "+50022345"),
        ("DE", "301234", None, "+49301234"),
        ("DE", "03012345", "+493012345", "+493012345"),
        ("NL", "14020", None, "+3114020"),
        ("US", "3522022", None, None),
        (None, "3522022", None, None),
    ],
)
def test_short(region: str | None, digits: str, expected: str | None, with_plus: str | None) -> None:
    """Digits as few as an extension or a local number has are nobody's, unless their country or form is told."""
    country = f"+{phonenumbers.country_code_for_region(region)}" if region else ""
    national = [e164(form.format(digits), region) for form in ("{}", "tel:{}", "sip:{}@pbx.example")]

    assert [expected] * 3 == national
    assert with_plus == e164(f"{country}{digits.removeprefix('0')}", region)


def test_longest() -> None:
    """An address may have a name, a host and tags beside its number, and those a bound."""
    short = '"Anna Maria van den Berg" <sip:+31612340012@203.0.113.7:5060;transport=udp>;tag=1928301774'
    long = f"sip:+31612340012@{'h' * 300}"

    assert (PERSON, None) == (e164(short, None), e164(long, None))
    assert (LONGEST, LONGEST_ADDRESS) == (longest("+31612340012"), longest(short)) == (64, 256)


@pytest.mark.parametrize(
    ("region", "expected"),
    [(None, True), ("NL", True), ("nl", True), ("US", True), ("UK", False), ("31", False), ("", False), ("EU", False), ("NLD", False)],
)  # fmt: skip
def test_region(region: str | None, expected: bool) -> None:
    """A country is told by its two letters, or not at all."""
    assert expected == (region_fault(region) == "")
