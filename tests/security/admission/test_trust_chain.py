"""Which versions of a trust root follow which, as TUF has it, and what is tried.

python-tuf's own rules for the root role are the judge, over the very signatures.
"""

from __future__ import annotations

import base64
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from securesystemslib.dsse import Envelope as SslibEnvelope
from securesystemslib.signer import Signature, SSlibKey
from tuf.api.metadata import Role, Root

from sealgate.protocol.dsse import KeySigner, PrivateKey, pae, prehashed, public_pem
from sealgate.protocol.envelope import Envelope
from security.admission.trust import Revocation, TrustRoot
from security.admission.trust_chain import (
    MAX_DOCUMENT_BYTES,
    MAX_STEPS,
    PAYLOAD_TYPE,
    TrustDocument,
    accept,
    check_continues,
    draft,
    follow,
    parse,
    steps,
)
from security.errors import KeyFileError, TrustRefused
from tests.support.patience import in_time, once
from tests.support.roots import (
    NOW,
    YEAR,
    hint,
    mldsa,
    p256,
    root_keys,
    signed,
    trust,
    version,
)

A, B, C, D = (p256(name) for name in "abcd")
MA, MB = mldsa("a"), mldsa("b")
EVIL = p256("evil")
FIRST = version(1, [A])


# What follows.


def test_it_reads_what_it_wrote() -> None:
    document = version(1, [A, MA])
    again = parse(document.to_json(), document.where)
    assert again == document
    assert again.root.to_json() == document.payload
    assert accept(again) is again


def test_keys_are_replaced_and_who_was_away_follows() -> None:
    second = version(2, [B], signers=[A, B])
    third = version(3, [C], signers=[B, C])
    fourth = version(4, [C, D], threshold=2, signers=[C, D])
    for known, coming in ((FIRST, [second, third, fourth]), (third, [fourth])):
        assert follow(known, coming, NOW) is fourth


def test_a_version_between_may_have_expired() -> None:
    """5.3.6: who comes late must get past it."""
    second = version(2, [B], signers=[A, B], expires=NOW - YEAR)
    third = version(3, [B])
    assert follow(FIRST, [second, third], NOW) is third


def test_an_expired_one_is_followed_from() -> None:
    old = version(1, [A], expires=NOW - YEAR)
    second = version(2, [A])
    assert follow(old, [second], NOW) is second


def test_a_bare_one_that_names_root_keys_is_followed_from() -> None:
    bare = TrustDocument(TrustRoot({}, root=root_keys([A])))
    assert follow(bare, [FIRST], NOW) is FIRST
    with pytest.raises(TrustRefused, match="the root of version 0, where 1 must"):
        follow(bare, [version(1, [EVIL])], NOW)


def test_the_same_again_is_no_news() -> None:
    assert list(steps(FIRST, [FIRST])) == []
    assert follow(FIRST, [FIRST], NOW) is FIRST


def test_ml_dsa_comes_and_p256_goes() -> None:
    both = version(2, [A, MA])
    only = version(3, [MA], signers=[A, MA])
    assert follow(FIRST, [both, only], NOW) is only


# What is tried.


def refused(
    known: TrustDocument, document: TrustDocument, words: str
) -> pytest.ExceptionInfo[TrustRefused]:
    with pytest.raises(TrustRefused, match=words) as caught:
        follow(known, [document], NOW)
    return caught


def test_a_rollback() -> None:
    second = version(2, [A])
    refused(second, FIRST, "version 1 is older than version 2, .* a rollback")


def test_a_freeze() -> None:
    """What came after the last one is held back, until that expires."""
    refused(FIRST, version(2, [A], expires=NOW), "expired at 2027-03-01T00:00:00Z")
    with pytest.raises(TrustRefused, match="may have been held back"):
        follow(FIRST, [], NOW + YEAR + timedelta(seconds=1))


def test_a_fork() -> None:
    """Root keys that signed two of one version."""
    second = version(2, [A])
    other = version(2, [A, B], signers=[A])
    refused(second, other, "another than the version 2 that was accepted: a fork")


def test_a_gap() -> None:
    refused(FIRST, version(3, [A]), "does not follow version 1: the versions between")
    refused(FIRST, version((1 << 53) - 1, [A]), "does not follow version 1")


def test_signed_by_the_new_keys_only() -> None:
    document = version(2, [EVIL], signers=[EVIL])
    refused(
        FIRST, document, "signed by 0 ecdsa-p256-sha256 keys of the root of version 1"
    )


def test_signed_by_the_old_keys_only() -> None:
    """A key that nobody has would lock everybody out."""
    document = version(2, [B], signers=[A])
    refused(FIRST, document, "signed by 0 ecdsa-p256-sha256 keys of its own root")


def test_fewer_than_the_old_threshold() -> None:
    known = version(1, [A, B, C], threshold=2)
    document = version(2, [A, B, C], signers=[A])
    refused(
        known, document, "by 1 ecdsa-p256-sha256 keys of the root of version 1, where 2"
    )
    assert follow(known, [version(2, [A], signers=[A, C])], NOW)


def edited(document: TrustDocument, **fields: object) -> TrustDocument:
    """What it says changed, its signatures left."""
    value = json.loads(document.payload) | fields
    envelope = json.loads(document.to_json())
    envelope["payload"] = base64.b64encode(json.dumps(value).encode()).decode()
    return parse(json.dumps(envelope).encode(), "edited")


def test_a_threshold_lowered_without_signing() -> None:
    known = version(1, [A, B], threshold=2)
    second = version(2, [A, B], threshold=2)
    pems = [public_pem(key.public_key()) for key in (A, B)]
    lowered = edited(second, root={"keys": pems, "threshold": 1})
    refused(
        known, lowered, "signed by 0 ecdsa-p256-sha256 keys of the root of version 1"
    )
    # The next one rests on what was signed, not on that.
    refused(second, version(3, [A, B], signers=[A]), "where 2 must")


def test_an_expiry_moved_without_signing() -> None:
    late = edited(version(2, [A], expires=NOW - YEAR), expires="2099-01-01T00:00:00Z")
    refused(FIRST, late, "signed by 0 ")


def test_one_key_signs_twice() -> None:
    known = version(1, [A, B], threshold=2)
    value = json.loads(version(2, [A, B], threshold=2, signers=[A]).to_json())
    value["signatures"] *= 2
    with pytest.raises(KeyFileError, match="a key signed twice"):
        parse(json.dumps(value).encode(), "twice")
    # Under the other key's name it is a signature by nobody.
    value["signatures"][1] = value["signatures"][0] | {"keyid": hint(B)}
    document = parse(json.dumps(value).encode(), "twice")
    refused(known, document, "signed by 1 ecdsa-p256-sha256 keys")


def test_one_key_is_listed_twice() -> None:
    pem = public_pem(A.public_key())
    wrapped = pem.replace("\n", "\r\n")
    for other in (pem, wrapped, f"\n{pem}"):
        value = json.loads(FIRST.payload)
        value["root"] = {"keys": [pem, other], "threshold": 2}
        with pytest.raises(KeyFileError, match="root has a key twice"):
            edited(FIRST, root=value["root"])


@pytest.mark.parametrize("threshold", [0, -1, 2, 1.0, True, "1", None])
def test_impossible_thresholds(threshold: object) -> None:
    keys = [public_pem(A.public_key())]
    with pytest.raises(KeyFileError, match="threshold is not 1 to 1"):
        edited(FIRST, root={"keys": keys, "threshold": threshold})


def test_a_root_of_two_algorithms_needs_both() -> None:
    """Whoever can forge the one cannot forge the other."""
    known = version(1, [A, B, MA, MB], threshold=2)
    for signers, words in (
        ([A, B], "0 ml-dsa-65 keys"),
        ([MA, MB], "0 ecdsa-p256-sha256 keys"),
        ([A, B, MA], "1 ml-dsa-65 keys"),
        ([A, MA, MB], "1 ecdsa-p256-sha256 keys"),
    ):
        refused(known, version(2, [A, B, MA, MB], threshold=2, signers=signers), words)
    assert follow(known, [version(2, [A], signers=[A, B, MA, MB])], NOW)


def test_a_threshold_that_one_algorithm_cannot_meet() -> None:
    with pytest.raises(KeyFileError, match="1 ml-dsa-65 keys, and a threshold of 2"):
        version(1, [A, B, MA], threshold=2)


def test_a_key_under_the_others_name() -> None:
    """The keyid selects a key, and the key says the algorithm."""
    value = json.loads(version(2, [A, MA]).to_json())
    names = [item["keyid"] for item in value["signatures"]]
    for item, name in zip(value["signatures"], reversed(names)):
        item["keyid"] = name
    swapped = parse(json.dumps(value).encode(), "swapped")
    refused(FIRST, swapped, "signed by 0 ")


def test_a_role_key_is_no_root_key() -> None:
    base = TrustRoot({"release": {hint(A): A.public_key()}})
    with pytest.raises(KeyFileError, match="a key of root holds a role"):
        version(1, [A], base=base)


def test_a_revoked_key_is_no_root_key() -> None:
    revoked = {hint(A): Revocation(hint(A), "2027-01-01T00:00:00Z", "lost")}
    with pytest.raises(KeyFileError, match="a key of root is revoked"):
        version(1, [A], base=TrustRoot({}, revoked))


@pytest.mark.parametrize("field", ["version", "expires", "root"])
def test_a_signed_one_states_all_three(field: str) -> None:
    value = json.loads(FIRST.payload)
    del value[field]
    envelope = json.loads(FIRST.to_json())
    envelope["payload"] = base64.b64encode(json.dumps(value).encode()).decode()
    with pytest.raises(KeyFileError, match="has version, expires and root"):
        parse(json.dumps(envelope).encode(), "short")


def test_unsigned_after_signed() -> None:
    bare = TrustDocument(trust(2, [EVIL]))
    refused(FIRST, bare, "is not signed, where version 1 was accepted signed")


def test_a_statement_is_no_trust_root() -> None:
    """A signature over another type of payload is one over other bytes."""
    value = json.loads(FIRST.to_json()) | {
        "payloadType": "application/vnd.in-toto+json"
    }
    with pytest.raises(KeyFileError, match="expected the type application/vnd"):
        parse(json.dumps(value).encode(), "statement")
    statement = pae("application/vnd.in-toto+json", FIRST.payload)
    value = json.loads(FIRST.to_json())
    value["signatures"][0]["sig"] = base64.b64encode(
        KeySigner(A).sign(statement)
    ).decode()
    with pytest.raises(TrustRefused, match="signed by 0 "):
        accept(parse(json.dumps(value).encode(), "statement"))


def test_a_proposal_is_signed_by_nobody() -> None:
    proposal = draft(trust(2, [A]))
    with pytest.raises(TrustRefused, match="signed by 0 "):
        accept(proposal)
    assert follow(FIRST, [proposal.signed_by(KeySigner(A))], NOW)


def test_signatures_by_strangers_are_no_harm() -> None:
    """Whoever relays an envelope can add some; too many are another thing."""
    strangers = [p256(f"stranger {number}") for number in range(30)]
    document = version(2, [A], signers=[A, *strangers])
    assert follow(FIRST, [document], NOW) is document
    with pytest.raises(KeyFileError, match="more than 32 signatures"):
        version(2, [A], signers=[A, *strangers, B, C])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data + b" " * MAX_DOCUMENT_BYTES, "over 524288 bytes"),
        (lambda data: data[:-1], "not JSON"),
        (lambda data: b"[" * 100_000 + b'"payloadType"', "nested too deeply|not JSON"),
        (lambda data: data.replace(b'"signatures"', b'"signature"'), "has payload, "),
        (lambda data: data.replace(b'"keyid"', b'"key"'), "has keyid and sig"),
        (lambda data: data.replace(b'"sig":"', b'"sig":"?'), "malformed base64"),
        (lambda data: data.replace(b'"payload":"', b'"payload":" '), "malformed"),
        (lambda data: b"\xff" + data, "UTF-8"),
        (lambda data: b"null", "top level is not an object"),
        (lambda data: data.replace(b"payloadT", b"p\\u0061yloadT"), "expected schema"),
    ],
)  # fmt: skip
def test_malformed_files(change: Callable[[bytes], bytes], words: str) -> None:
    with pytest.raises(KeyFileError, match=words):
        parse(change(FIRST.to_json()), "file")


def test_a_huge_file_is_not_parsed() -> None:
    data = b'{"payloadType":' + b"[" * (8 << 20)

    def scene() -> None:
        began = time.process_time()
        with pytest.raises(KeyFileError, match="over 524288 bytes"):
            parse(data, "file")
        in_time(began, 0.1, now=time.process_time())

    once(scene)


def chain(length: int) -> list[TrustDocument]:
    return [version(number, [A]) for number in range(2, length + 2)]


def test_thousand_versions_and_no_more_at_once() -> None:
    coming = chain(MAX_STEPS + 1)
    assert follow(FIRST, coming[:MAX_STEPS], NOW) is coming[-2]
    taken: list[TrustDocument] = []
    with pytest.raises(
        TrustRefused, match="more than 1024 versions at once; go on from"
    ):
        taken.extend(steps(FIRST, coming))
    assert len(taken) == MAX_STEPS
    # Those before the bound were believed, and the next update goes on.
    assert follow(coming[-2], coming[-1:], NOW) is coming[-1]


def test_what_never_ends_is_left() -> None:
    """A host that always has one more version."""
    asked = 0

    def endless() -> object:
        nonlocal asked
        while True:
            asked += 1
            yield FIRST  # an answer that is no news

    with pytest.raises(TrustRefused, match="more than 1024"):
        list(steps(FIRST, endless()))  # type: ignore[arg-type]
    assert asked == MAX_STEPS + 1


# The judges.


def tuf_root(document: TrustDocument) -> Root:
    """The same root role as TUF's metadata says it."""
    of = document.root.root
    assert of is not None
    keys = {
        name: SSlibKey(
            name,
            "ecdsa",
            "ecdsa-sha2-nistp256",
            {"public": public_pem(key)},
        )
        for name, key in of.keys.items()
    }
    role = Role(list(keys), of.threshold)
    others = {name: Role([], 1) for name in ("timestamp", "snapshot", "targets")}
    return Root(version=document.version, keys=keys, roles={"root": role, **others})


def tuf_believes(known: TrustDocument, document: TrustDocument) -> bool:
    """`Root.get_root_verification_result`, over our bytes and signatures."""
    assert document.envelope is not None
    signatures = {
        name: Signature(name, signature.hex())
        for name, signature in document.envelope.signatures.items()
    }
    data = pae(PAYLOAD_TYPE, document.payload)
    try:
        found = tuf_root(document).get_root_verification_result(
            tuf_root(known), data, signatures
        )
    except ValueError:  # versions that are not sequential
        return False
    return bool(found)


def we_believe(known: TrustDocument, document: TrustDocument) -> bool:
    try:
        check_continues(known, document)
    except TrustRefused:
        return False
    return True


def some(chance: random.Random, keys: Sequence[PrivateKey]) -> list[PrivateKey]:
    return chance.sample(keys, chance.randint(1, len(keys)))


def test_python_tuf_decides_the_same() -> None:
    chance, decided = random.Random(18), set()
    for _ in range(200):
        old, new = some(chance, (A, B, C)), some(chance, (A, B, C, D))
        known = version(5, old, threshold=chance.randint(1, len(old)))
        document = version(
            chance.choice((4, 6, 6, 6, 7)),
            new,
            threshold=chance.randint(1, len(new)),
            signers=some(chance, (A, B, C, D)),
        )
        answer = we_believe(known, document)
        assert answer == tuf_believes(known, document)
        decided.add(answer)
    assert decided == {True, False}


def test_securesystemslib_verifies_the_envelope() -> None:
    document = version(2, [A, B], threshold=2)
    envelope = SslibEnvelope.from_dict(json.loads(document.to_json()))
    keys = list(tuf_root(document).keys.values())
    assert envelope.payload == document.payload
    assert len(envelope.verify(keys, 2)) == 2


def test_the_payload_is_the_file_of_old() -> None:
    """A reader of bare files reads what is in the envelope."""
    base = TrustRoot({"release": {hint(B): B.public_key()}})
    document = version(1, [A], base=base)
    bare = parse(document.payload, "bare")
    assert bare.envelope is None
    assert bare.root == document.root
    assert bare.root.keys(("release",)).keys() == {hint(B)}


def test_signed_documents_of_one_payload_are_one_version() -> None:
    """ECDSA is not deterministic: another signature is no fork."""
    root = trust(1, [A])
    assert check_continues(signed(root, [A]), signed(root, [A]))


def test_a_root_key_in_a_key_service_signs_its_own_form() -> None:
    """ML-DSA-65 over a pre-hash, where the root says so, and nowhere else."""
    told = replace(trust(1, [MA]), prehash=frozenset({hint(MA)}))
    for root, form, believed in (
        (told, prehashed, True),
        (told, bytes, False),
        (trust(1, [MA]), prehashed, False),
        (trust(1, [MA]), bytes, True),
    ):
        envelope = Envelope(PAYLOAD_TYPE, root.to_json())
        signature = MA.sign(form(pae(PAYLOAD_TYPE, envelope.payload)))
        envelope = replace(envelope, signatures={hint(MA): signature})
        document = parse(envelope.to_json(), "version 1")
        if believed:
            assert accept(document)
        else:
            with pytest.raises(TrustRefused, match="signed by 0 ml-dsa-65"):
                accept(document)
    with pytest.raises(KeyFileError, match="prehash names no ML-DSA-65 key"):
        signed(replace(trust(1, [A]), prehash=frozenset({hint(A)})), [A])
