"""TLS as Ray's own: where Ray encrypts what it sends, with the certificates that its settings name, a connection of ours does, too.

Both sides show a certificate that the authority in RAY_TLS_CA_CERT has signed, and that of the side that listens names its address.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from typing import Any

CERTIFICATE, KEY, AUTHORITY = "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT"


def server_side() -> ssl.SSLContext | None:
    """For who listens. None: Ray is not told to encrypt. Raises OSError, in words, where its certificates are of no use."""
    return _context(ssl.PROTOCOL_TLS_SERVER)


def client_side() -> ssl.SSLContext | None:
    """For who connects, and then has to look whether the certificate ``is_for`` the address. Else as ``server_side``."""
    return _context(ssl.PROTOCOL_TLS_CLIENT)


def is_for(certificate: Mapping[str, Any], host: str) -> bool:
    """Whether a certificate, as ``getpeercert`` has it, names this address, by the rules of Ray's gRPC.

    Those of ``ssl`` refuse an address that is given as a name of DNS, as that of Ray's own certificates.
    """
    names = [value for _, value in certificate.get("subjectAltName", ())]
    if not names:
        names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    return host in names


def _context(protocol: int) -> ssl.SSLContext | None:
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return None
    missing = [name for name in (CERTIFICATE, KEY, AUTHORITY) if not os.environ.get(name)]
    if missing:
        raise OSError(f"RAY_USE_TLS is set, but {' and '.join(missing)} is not")
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(os.environ[CERTIFICATE], os.environ[KEY], password="")  # a key that needs one: nobody is asked
        context.load_verify_locations(os.environ[AUTHORITY])
    except (OSError, ValueError) as error:  # which name no file
        files = ", ".join(os.environ[name] for name in (CERTIFICATE, KEY, AUTHORITY))
        raise OSError(f"the certificates that Ray is to use cannot be read ({error}): {files}") from error
    return context
