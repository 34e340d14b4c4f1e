"""What Python signs, encodes and refuses, for the JavaScript client to do alike.

Each verdict is Python's own, computed here: the two can only differ by failing a test.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from models.bundle import (
    VERDICT_FILE,
    attestation_file,
    mldsa_file,
    read_bundle,
    report_file,
)
from sealgate.errors import JsonError, PassportError, ProtocolError
from sealgate.passport import verify_passport
from sealgate.protocol import bhttp, datatypes, dsse, keyconfig, strict_json
from sealgate.protocol.bhttp import Request, Response
from sealgate.protocol.dsse import public_pem
from sealgate.protocol.hpke import KEM_X25519, PrivateKey
from sealgate.protocol.keyconfig import KeyConfig
from sealgate.protocol.padding import padded_size
from sealgate.protocol.signedkeys import (
    PAYLOAD_TYPE,
    PAYLOAD_TYPE_V2,
    sign_keys,
    sign_keys_v2,
    verify_keys,
    verify_keys_v2,
)
from tests.support.bundles import KINDS, NAME, Keys, write_bundle
from tests.support.servers import ROOT

__all__ = ["all_cases"]

CORPUS = ROOT / "tests" / "vectors" / "bhttp-corpus"
P256, OTHER = (ec.derive_private_key(n, ec.SECP256R1()) for n in (7, 8))
MLDSA = MLDSA65PrivateKey.from_seed_bytes(bytes(32))
DOCUMENT = keyconfig.encode_list(
    [KeyConfig(1, KEM_X25519, PrivateKey.from_bytes(b"\1" * 32).public_bytes)]
)


def all_cases(folder: Path) -> dict[str, Any]:
    """Everything; ``folder`` is for a bundle."""
    return {
        "bhttp": list(_refused_messages()),
        "responses": list(_responses()),
        "requests": [_request(align) for align in range(16)],
        "padding": [[n, padded_size(n)] for n in _sizes()],
        "json": _json(),
        "signedKeys": list(_signed_keys()),
        "passports": list(_passports(folder)),
        "FP16": _narrow(np.float16),
        "BF16": _narrow(None),
        "tensors": list(_tensors()),
    }


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _refused_messages() -> Iterator[dict[str, Any]]:
    whole = bhttp.encode_response(Response(200, ((b"a", b"b"),), b"content"))
    cut = [whole[:size] for size in range(len(whole))]
    corpus = [path.read_bytes() for path in sorted(CORPUS.glob("*.bin"))]
    for message in (*corpus, *cut, whole + b"\x01", b"\x01\x40\x63", b"\x01\x42\x58"):
        try:
            bhttp.decode_response(message)
        except ProtocolError as error:
            yield {"message": _b64(message), "expected": str(error)}


def _responses() -> Iterator[dict[str, Any]]:
    early = b"\x40\x66\x00"  # 102, without fields
    for content in (b"", b"content"):
        for known in (True, False):
            message = bhttp.encode_response(
                Response(404, ((b"a", b""),), content), known=known
            )
            yield {
                "message": _b64(message + bytes(9)),
                "status": 404,
                "content": content.decode(),
            }
        whole = bhttp.encode_response(Response(200, (), content))
        yield {
            "message": _b64(whole[:1] + early + whole[1:]),
            "status": 200,
            "content": content.decode(),
        }


def _request(align: int) -> dict[str, Any]:
    fields = ((b"date", b"Thu, 01 Jan 1970 00:00:00 GMT"),)
    request = Request(
        b"POST", b"https", b"models.example", b"/v2", fields, b"0123456789abcdef"
    )
    message = bhttp.encode_request(request, align=align)
    return {"align": align, "message": message.hex()}


def _sizes() -> Iterator[int]:
    yield from (0, 1, 1023, 1024, 1025, 1088, 1089, 10_000_000, (64 << 20) + 1)
    yield from (7**n for n in range(4, 10))


def _json() -> dict[str, list[str]]:
    texts = [
        *(b'{"a": [1, -2.5e3, "\\u00e9", "\\\\\\"", true, false, null]}', b" {} \n"),
        *(b'{"a": 1, "a": 2}', b'{"a": 1e999}', b'{"a": NaN}', b'{"a": "\\ud800"}'),
        *(b"[]", b"", b"{", b'{"a"}', b'{"a": 1,}', b"{a: 1}", b"{} {}", b'{"a": 01}'),
        *(b'{"a": +1}', b'{"a": "\xff"}', b'{"a": "\n"}', b'{"a": "x', b"{'a': 1}"),
        b'{"a": ' + b"[" * 31 + b"]" * 31 + b"}",
        b'{"a": ' + b"[" * 32 + b"]" * 32 + b"}",
        b'{"__proto__": 1, "constructor": 2}',
        b'{"__proto__": 1, "__proto__": 2}',
        b'{"a": "' + b"x" * 100_000 + b'"}',
    ]
    cases: dict[str, list[str]] = {"good": [], "bad": []}
    for text in texts:
        try:
            strict_json.loads_object(text, max_bytes=1 << 20)
        except JsonError:
            cases["bad"].append(_b64(text))
        else:
            cases["good"].append(text.decode())
    return cases


def _envelope(kind: str, payload: bytes, *keys: Any) -> bytes:
    signers = [dsse.KeySigner(key) for key in keys]
    data = dsse.pae(kind, payload)
    signatures = [
        {"keyid": signer.hint, "sig": _b64(signer.sign(data))} for signer in signers
    ]
    return strict_json.dumps(
        {"payload": _b64(payload), "payloadType": kind, "signatures": signatures}
    )


def _payload(**changes: Any) -> bytes:
    value = {"keys": _b64(DOCUMENT), "not_after": 2000, "not_before": 1000}
    return json.dumps(value | changes).encode()


def _signed_keys() -> Iterator[dict[str, Any]]:
    window = {"not_before": 1000, "not_after": 2000}
    first = sign_keys(DOCUMENT, P256, **window)
    both = sign_keys_v2(DOCUMENT, [P256, MLDSA], **window)
    signatures = json.loads(both)["signatures"]

    def changed(envelope: bytes, **members: Any) -> bytes:
        return json.dumps(json.loads(envelope) | members).encode()

    broken = [dict(item, sig=_b64(b"\x30" * 70)) for item in signatures]
    p256, mldsa = (public_pem(key.public_key()) for key in (P256, MLDSA))
    other = public_pem(OTHER.public_key())
    cases: list[tuple[str, bytes, list[str], float, int]] = [
        ("version 1", first, [p256], 1500, 1),
        ("a key that was replaced", first, [other], 1500, 1),
        ("one of two trusted keys", first, [other, p256], 1500, 1),
        ("several keys in one text", first, [other + p256], 1500, 1),
        ("just before", first, [p256], 941, 1),
        ("a clock that is hours behind", first, [p256], 1000 - 7200, 1),
        ("just after", first, [p256], 2059, 1),
        ("a clock that is hours ahead", first, [p256], 2000 + 7200, 1),
        ("no signature", changed(first, signatures=[]), [p256], 1500, 1),
        ("another payload", changed(first, payload=_b64(_payload())), [p256], 1500, 1),
        ("version 2 for 1", both, [p256], 1500, 1),
        ("version 1 for 2", first, [p256], 1500, 2),
        ("version 2, both keys", both, [p256, mldsa], 1500, 2),
        ("version 2, ECDSA alone", both, [p256], 1500, 2),
        ("version 2, ML-DSA alone", both, [mldsa], 1500, 2),
        ("half", changed(both, signatures=signatures[:1]), [p256, mldsa], 1500, 2),
        ("half", changed(both, signatures=signatures[1:]), [p256, mldsa], 1500, 2),
        ("one twice", changed(both, signatures=signatures[:1] * 2), [p256], 1500, 2),
        ("five", changed(both, signatures=signatures * 3), [p256], 1500, 2),
        *(
            ("one is broken", changed(both, signatures=mixed), [p256, mldsa], 1500, 2)
            for mixed in (
                [broken[0], signatures[1]],
                [signatures[0], broken[1]],
                [dict(signatures[0], sig="****"), signatures[1]],
            )
        ),
        *(
            (
                f"signed, with {name}",
                _envelope(PAYLOAD_TYPE, payload, P256),
                [p256],
                1500,
                1,
            )
            for name, payload in (
                ("nothing wrong", _payload()),
                ("a member more", _payload(more=1)),
                ("a time in text", _payload(not_after="2000")),
                ("a fraction of a second", _payload(not_after=2000.5)),
                ("keys that are no base64", _payload(keys="%")),
                ("a member twice", _payload().replace(b"{", b'{"keys": "",')),
                ("no object", b"[]"),
            )
        ),
        (
            "another payload type",
            _envelope(PAYLOAD_TYPE_V2, _payload(), P256),
            [p256],
            1500,
            1,
        ),
        ("no JSON", b"{", [p256], 1500, 1),
        ("no object", b"[]", [p256], 1500, 2),
    ]
    for name, envelope, pems, now, version in cases:
        yield {
            "name": name,
            "envelope": _b64(envelope),
            "keys": pems,
            "now": now,
            "version": version,
            "document": _b64(DOCUMENT),
            "error": _verdict(envelope, pems, now, version),
        }


def _verdict(envelope: bytes, pems: list[str], now: float, version: int) -> str | None:
    blocks = [part + "-----\n" for pem in pems for part in _blocks(pem)]
    keys = {dsse.key_hint(key): key for key in map(dsse.parse_public, blocks)}
    verify = verify_keys if version == 1 else verify_keys_v2
    try:
        verify(envelope, keys, now=now)
    except ProtocolError as error:
        return str(error)
    return None


def _blocks(pem: str) -> list[str]:
    end = "-----END PUBLIC KEY"
    return [part.removeprefix("-----\n") + end for part in pem.split(end)[:-1]]


def _document(folder: Path, keys: Keys) -> dict[str, Any]:
    files = read_bundle(write_bundle(folder, keys)).files
    document: dict[str, Any] = {
        "verdict": files[VERDICT_FILE].decode(),
        "evidence": {
            kind: {
                "attestation": files[attestation_file(kind)].decode(),
                "report": files[report_file(kind)].decode(),
            }
            for kind in KINDS
        },
    }
    second = files.get(mldsa_file(VERDICT_FILE))
    return document | ({} if second is None else {"verdict_mldsa": second.decode()})


def _passports(folder: Path) -> Iterator[dict[str, Any]]:
    keys, stronger = Keys.generate(), Keys.generate(mldsa=["release"])
    release = public_pem(keys.release.public_key())
    genuine = _document(folder / "bundle", keys)
    other = _document(folder / "other", Keys.generate())
    twice = _document(folder / "twice", stronger)
    both = [
        public_pem(stronger.release.public_key()),
        public_pem(stronger.mldsa["release"].public_key()),
    ]
    cases: list[tuple[str, Any, list[str], str]] = [
        ("genuine", genuine, [release], NAME),
        ("another model's", genuine, [release], "other"),
        ("a replaced key", genuine, [public_pem(OTHER.public_key())], NAME),
        ("ML-DSA is trusted", genuine, [release, both[1]], NAME),
        ("two signatures, both trusted", twice, both, NAME),
        ("two signatures, one trusted", twice, both[:1], NAME),
        ("the second alone", twice, both[1:], NAME),
        (
            "a second of another",
            twice | {"verdict_mldsa": other["verdict"]},
            both,
            NAME,
        ),
        *((name, d, [release], NAME) for name, d in _changed(genuine, other)),
    ]
    for name, document, pems, model in cases:
        error = None
        try:
            verify_passport(document, model=model, trusted_keys=pems)
        except PassportError as refused:
            error = str(refused)
        yield {
            "name": name,
            "document": document,
            "model": model,
            "keys": pems,
            "reports": sorted(KINDS),
            "error": error,
        }


def _changed(genuine: Any, other: Any) -> Iterator[tuple[str, Any]]:
    """What is no passport of the genuine one's release."""
    evidence, theirs = genuine["evidence"], other["evidence"]
    privacy, quality = evidence["privacy"], evidence["quality"]
    report, verdict = quality["report"], genuine["verdict"]

    def without(*kinds: str, **instead: Any) -> dict[str, Any]:
        kept = {kind: item for kind, item in evidence.items() if kind not in kinds}
        return {**genuine, "evidence": kept | instead}

    yield "another release's verdict", genuine | {"verdict": other["verdict"]}
    yield "another release's evidence", genuine | {"evidence": theirs}
    yield "no evidence", genuine | {"evidence": {}}
    yield "evidence is no object", genuine | {"evidence": []}
    yield "a kind is missing", without("privacy")
    yield "two kinds swapped", without(privacy=quality, quality=privacy)
    yield "a kind in upper case", without("privacy", Privacy=privacy)
    yield "another kind's report", without(privacy=privacy | {"report": report})
    yield "a space more", without(quality=quality | {"report": report + " "})
    further = [theirs["quality"]["attestation"]]
    yield "further attestations", without(quality=quality | {"further": further})
    flipped = verdict.replace('"payload":"e', '"payload":"f')
    yield "a verdict with a byte changed", genuine | {"verdict": flipped}
    waived = {"privacy": privacy["attestation"]}
    yield "a waiver out of nowhere", genuine | {"waivers": waived}
    yield "waivers are no object", genuine | {"waivers": 5}
    yield "nothing", {}
    yield "no object", []
    yield "null", None


def _narrow(dtype: Any) -> dict[str, Any]:
    random = np.random.default_rng(5)
    numbers = np.concatenate(
        [
            [0.0, -0.0, 1.0, -1.5, 2.0**-24, 2.0**-25, 3 * 2.0**-25, 6e-8, 65504.0],
            [65519.0, 1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-8, 1 + 3 * 2.0**-8],
            random.normal(size=200) * 10.0 ** random.uniform(-8, 4, size=200),
        ]
    )
    if dtype is None:
        narrowed = datatypes.narrow(numbers)
        bits, back = narrowed.view(np.uint16), datatypes.numbers(narrowed)
    else:
        half = numbers.astype(dtype)
        bits, back = half.view(np.uint16), half.astype(np.float32)
    return {
        "numbers": numbers.tolist(),
        "bits": bits.tolist(),
        "back": back.tolist(),
    }


def _tensors() -> Iterator[dict[str, Any]]:
    values: dict[str, list[Any]] = {
        "BOOL": [True, False, True, True],
        "BYTES": ["", "é", "a\0b", "𝄞"],
    }
    for datatype, dtype in datatypes.DATATYPES.items():
        given = values.get(datatype, [1, 2, 3, 100])
        if datatype == "BYTES":
            packed = datatypes.pack_strings(np.array(given, dtype=object), "x")
        elif datatype == "BF16":
            packed = datatypes.narrow(np.array(given, dtype=np.float32)).tobytes()
        else:
            packed = np.array(given, dtype=dtype.newbyteorder("<")).tobytes()
        yield {
            "datatype": datatype,
            "shape": [2, 2],
            "values": given,
            "packed": packed.hex(),
        }
