"""The log that a client believes, and its witnesses, by the keys of its options."""

from __future__ import annotations

from sealgate.errors import NoteError, ProfileError
from sealgate.options import Options
from sealgate.protocol.cosignatures import CosignatureVerifier, parse_note_key
from sealgate.protocol.receipts import LogTrust

__all__ = ["log_trust"]


def log_trust(options: Options) -> LogTrust:
    """The log that a client believes, and its witnesses.

    Raises:
        ProfileError: none is named, or a key is none; or it is not said how many of
            the witnesses must have cosigned.
    """
    if not options.log_keys:
        raise ProfileError("log_keys: name the key of the deployment's audit log")
    if options.witness_keys and not options.required_witnesses:
        # Whoever names witnesses wants to rely on them: none required is a slip.
        raise ProfileError("required_witnesses: say how many of the witnesses")
    try:
        return LogTrust(
            tuple(map(parse_note_key, options.log_keys)),
            tuple(map(CosignatureVerifier.parse, options.witness_keys)),
            options.required_witnesses,
        )
    except NoteError as error:
        raise ProfileError(f"log_keys, witness_keys: {error}") from None
