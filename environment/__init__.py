"""Reads a process's settings from its environment, all at once, before anything is opened.

A settings class is a frozen `msgspec.Struct` whose field names are the variables' names in lower
case. An empty variable counts as not set, and so does one that an orchestrator set for a service of the
same name. A secret, a URL with one in it, a PEM or a TOML may also come from a file that `<NAME>_FILE` names.
"""

from environment.address import BaseUrl, Host, Port, Target, address, is_loopback
from environment.document import Document, Pem, Toml
from environment.network import Address, Networks, Proxies, Sources, ip_address
from environment.output import complain, drop_errors, drop_output, parsing, report_done
from environment.pem import pem_faults
from environment.rate import CountStorage, Rate
from environment.reading import EnvironmentInvalid, read
from environment.remarks import Remark, remarks
from environment.secret import ApiKey, Key, Secret, SecretUrl, Token, text_of
from environment.shared import SharedSettings
from environment.size import LARGEST_SAMPLE_MEBIBYTES, MEBIBYTE

__all__ = [
    "LARGEST_SAMPLE_MEBIBYTES",
    "MEBIBYTE",
    "Address",
    "ApiKey",
    "BaseUrl",
    "CountStorage",
    "Document",
    "EnvironmentInvalid",
    "Host",
    "Key",
    "Networks",
    "Pem",
    "Port",
    "Proxies",
    "Rate",
    "Remark",
    "Secret",
    "SecretUrl",
    "SharedSettings",
    "Sources",
    "Target",
    "Token",
    "Toml",
    "address",
    "complain",
    "drop_errors",
    "drop_output",
    "ip_address",
    "is_loopback",
    "parsing",
    "pem_faults",
    "read",
    "remarks",
    "report_done",
    "text_of",
]
