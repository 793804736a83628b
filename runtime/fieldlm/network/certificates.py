"""SHA-256 of a TLS certificate: of a PEM file, and of whoever answers at an address."""

import hashlib
import ssl
from pathlib import Path

ANSWER_S = 10.0


def certificate_sha256(path: Path) -> str:
    """Return the hex SHA-256 of the first certificate in the PEM at `path`; "" when there is none to read."""
    try:
        pem = path.read_text()
        begin, end = pem.index(ssl.PEM_HEADER), pem.index(ssl.PEM_FOOTER) + len(ssl.PEM_FOOTER)
        return _digest(pem[begin:end])
    except (OSError, ValueError):
        return ""


def certificate_at(host: str, port: int) -> str:
    """Return the hex SHA-256 of the certificate that is shown there, whoever that is; raises OSError without one."""
    return _digest(ssl.get_server_certificate((host, port), timeout=ANSWER_S))


def _digest(pem: str) -> str:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
