"""Certificates that tests make."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import trustme


class Files:
    """An authority's certificates, as files of the server and of a client."""

    def __init__(self, folder: Path):
        folder.mkdir()
        self.authority, self.folder = trustme.CA(), folder
        self.ca, self.cert, self.key = (folder / name for name in ("ca", "cert", "key"))
        self.authority.cert_pem.write_to_path(self.ca)
        self.renew(self.authority)

    def renew(self, authority: trustme.CA) -> None:
        """Certificates that another authority has signed."""
        made = authority.issue_cert("127.0.0.1")
        made.private_key_pem.write_to_path(self.key)
        self.cert.write_bytes(b"".join(part.bytes() for part in made.cert_chain_pems))
        later = time.time_ns() + 10**9
        os.utime(self.cert, ns=(later, later))

    def shown(self) -> dict[str, Any]:
        return {"tls_cert": self.cert, "tls_key": self.key}
