"""A deployment's audit log, its witnesses, and receipts from it."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from sealgate.protocol.cosignatures import Cosigner
from sealgate.protocol.notes import Signer, split_note
from sealgate.protocol.receipts import LogTrust, NumberSealer
from security.audit.log import AuditLog, LogLimits
from security.audit.receipts import ReceiptMaker
from security.audit.records import encode
from security.audit.tree_log import TreeLog

LOG_NAME = "models.example/audit"
MODEL = "ab" * 32
NOW = 1_795_276_800
SECRET = b"s" * 32


@dataclass
class Deployment:
    """A log that writers write, and that witnesses watch."""

    folder: Path
    witnesses: int = 0
    ml_dsa: bool = False
    name: str = LOG_NAME
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    def __post_init__(self) -> None:
        ml_dsa_key = MLDSA65PrivateKey.generate() if self.ml_dsa else None
        self.signer = Signer(self.name, self.key, ml_dsa_key=ml_dsa_key)
        self.log = TreeLog(self.folder, self.signer)
        self.cosigners = [
            Cosigner(f"witness{number}.example/w", Ed25519PrivateKey.generate())
            for number in range(self.witnesses)
        ]
        verifiers = tuple(cosigner.verifier for cosigner in self.cosigners)
        self.trust = LogTrust(self.signer.verifiers, verifiers, self.witnesses)
        self.numbers = NumberSealer(SECRET)

    def writer(self, name: str = "1795276800-7") -> AuditLog:
        return AuditLog(
            self.folder,
            writer=name,
            signer=Signer(self.name, self.key),
            log=self.log,
            limits=LogLimits(sync=False, max_file_bytes=8000),
        )

    @property
    def maker(self) -> ReceiptMaker:
        return ReceiptMaker(self.log, numbers=self.numbers, trust=self.trust)

    def cosign(self, *numbers: int, note: bytes | None = None) -> bytes:
        """The newest checkpoint with the cosignatures of some witnesses; kept."""
        text, _ = split_note(note or self.log.checkpoint())
        lines = [self.cosigners[at].cosign(text, time_s=NOW + at) for at in numbers]
        signed = (note or self.log.checkpoint()) + "".join(map(str, lines)).encode()
        self.log.put_cosigned(signed)
        return signed

    def receipt(self, writer: AuditLog, place: int) -> bytes:
        """The receipt for a record that checkpoints cover."""
        found = self.maker.find(self.numbers.seal(writer.writer, place))
        receipt = self.maker.make(found)
        assert receipt is not None
        return receipt

    def trusting(self, **changes: Any) -> LogTrust:
        return replace(self.trust, **changes)


def answered(request_id: str = "", **changes: Any) -> bytes:
    """A record of a request that a model answered."""
    fields = {
        "time_us": NOW * 1_000_000,
        "request_id": request_id or secrets.token_hex(8),
        "subject": secrets.token_hex(16),
        "client": "frontend",
        "token": secrets.token_hex(16),
        "action": "infer",
        "model": "toy",
        "model_sha256": MODEL,
        "outcome": "allow",
        "status": 200,
        "rows": 1,
        "request_bytes": 1234,
        "response_bytes": 321,
        "sealed": True,
        "latency_us": 812,
    }
    return encode(fields | changes)


def edited(record: bytes, **changes: Any) -> bytes:
    """A record's bytes with other values."""
    return json.dumps(json.loads(record) | changes, separators=(",", ":")).encode()
