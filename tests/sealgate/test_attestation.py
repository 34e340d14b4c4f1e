"""What a client demands of a machine: policies, and who verifies for them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sealgate import Options
from sealgate.attestation import AttestationPolicy, Attested, Tpm2Verifier
from sealgate.errors import AttestationError, ProfileError
from sealgate.keys import load_identity_keys
from sealgate.options import options_of
from sealgate.profile import Profile
from sealgate.protocol.signedkeys import SignedKeys, verify_keys_v2
from tests.support.quotes import OURS_PEM, RECORDED, REGISTERS, quote

SIGNED = SignedKeys((), b"document", 1000, 2000, "hint")
STATE = REGISTERS[15].hex()
TYPES = {"tpm2": {"keys": [OURS_PEM], "pcrs": {"15": STATE}}}


def check(evidence, **changes):
    policy = AttestationPolicy.from_object({"types": TYPES} | changes)
    return policy.check(replace(SIGNED, attestation=evidence))


def test_evidence_that_a_policy_takes():
    expected = Attested("tpm2", {"PCR 15": STATE})
    assert check(quote(SIGNED.nonce)) == expected


def test_what_a_tpm_quoted_by_what_was_measured():
    verifier = Tpm2Verifier.from_object(
        {"keys": [RECORDED["key"]], "measured": {"15": RECORDED["measured"]}}
    )
    nonce = bytes.fromhex(RECORDED["nonce"])
    claims = verifier.verify(RECORDED["evidence"], nonce=nonce)
    assert claims == {"PCR 15": RECORDED["evidence"]["pcrs"]["15"]}
    with pytest.raises(AttestationError, match="PCR 15 does not hold what it should"):
        verifier.verify(RECORDED["after_an_extend"], nonce=nonce)
    with pytest.raises(AttestationError, match="over another nonce"):
        verifier.verify(RECORDED["of_another_nonce"], nonce=nonce)
    with pytest.raises(AttestationError, match="not trusted"):
        verifier.verify(RECORDED["by_another_key"], nonce=nonce)


def test_recorded_keys_with_a_tpms_own_quote():
    """As a server served them: signatures, nonce, quote and state, all of them real."""
    recorded = RECORDED["signed_keys"]
    identities = load_identity_keys(recorded["identity_keys"])
    now = recorded["not_after"] - 1
    signed = verify_keys_v2(recorded["envelope"].encode(), identities, now=now)
    assert len(signed.hints) == 2
    measured = {"15": RECORDED["measured"]}
    types = {"tpm2": {"keys": [RECORDED["key"]], "measured": measured}}
    policy = AttestationPolicy.from_object({"types": types})
    found = policy.check(signed)
    assert found is not None
    assert found.claims == {"PCR 15": RECORDED["evidence"]["pcrs"]["15"]}
    with pytest.raises(AttestationError, match="over another nonce"):
        policy.check(replace(signed, not_after=signed.not_after + 1))
    types["tpm2"]["measured"] = {"15": RECORDED["measured"][:1]}
    with pytest.raises(AttestationError, match="PCR 15 does not hold"):
        AttestationPolicy.from_object({"types": types}).check(signed)


def test_a_verifier_that_evidence_makes_stumble():
    class Verifier:
        def verify(self, evidence, *, nonce):
            return evidence["report"]

    policy = AttestationPolicy({"sev-snp": Verifier()})
    signed = replace(SIGNED, attestation={"type": "sev-snp"})
    with pytest.raises(AttestationError, match="verifier of sev-snp raised KeyError"):
        policy.check(signed)


def test_keys_without_evidence():
    with pytest.raises(AttestationError, match="without evidence"):
        check(None)
    assert check(None, mode="optional") is None


def test_evidence_that_is_there_must_verify_though_it_could_be_left_out():
    with pytest.raises(AttestationError, match="over another nonce"):
        check(quote(bytes(32)), mode="optional")


def test_evidence_of_another_kind_than_the_policy_names():
    with pytest.raises(AttestationError, match="type that the policy does not name"):
        check({"type": "sev-snp"}, mode="optional")


@pytest.mark.parametrize(
    "other",
    [
        replace(SIGNED, document=b"other keys"),
        replace(SIGNED, not_before=999),
        replace(SIGNED, not_after=2001),
    ],
)
def test_evidence_about_other_keys_or_another_window(other):
    with pytest.raises(AttestationError, match="over another nonce"):
        check(quote(other.nonce))


def test_evidence_for_longer_than_the_policy_allows():
    assert check(quote(SIGNED.nonce), max_window_s=1000)
    with pytest.raises(AttestationError, match="for longer than"):
        check(quote(SIGNED.nonce), max_window_s=999)


def test_a_register_that_was_not_quoted():
    types = {"tpm2": {"keys": [OURS_PEM], "pcrs": {"7": STATE}}}
    with pytest.raises(AttestationError, match="PCR 7 was not quoted"):
        check(quote(SIGNED.nonce), types=types)


def tpm2(**changes):
    return {"types": {"tpm2": TYPES["tpm2"] | changes}}


MALFORMED = {
    "an unknown field": {"types": TYPES, "more": 1},
    "another mode": {"types": TYPES, "mode": "off"},
    "no types": {},
    "types in a list": {"types": []},
    "no type": {"types": {}},
    "a type that is no object": {"types": {"tpm2": 1}},
    "a type that nothing verifies": {"types": {"sev-snp": {}}},
    "a window of nothing": {"types": TYPES, "max_window_s": 0},
    "a window in words": {"types": TYPES, "max_window_s": "1 h"},
    "an unknown field of the type": tpm2(more=1),
    "no keys": tpm2(keys=[]),
    "keys as text": tpm2(keys=OURS_PEM),
    "a key that is none": tpm2(keys=["x"]),
    "no registers": tpm2(pcrs={}),
    "registers in a list": tpm2(pcrs=[]),
    "a register beyond the last": tpm2(pcrs={"24": STATE}),
    "a register by another name": tpm2(pcrs={"x": STATE}),
    "a value that is no digest": tpm2(pcrs={"15": "00"}),
    "a value that is no hex": tpm2(pcrs={"15": "z" * 64}),
    "a register that can be reset": tpm2(pcrs={"16": STATE}),
    "another one": tpm2(measured={"23": []}),
    "a register named twice": tpm2(measured={"15": []}),
    "what was measured as text": tpm2(measured={"14": STATE}),
    "measurements without end": tpm2(measured={"14": [STATE] * 4097}),
}


@pytest.mark.parametrize("value", MALFORMED.values(), ids=MALFORMED)
def test_policies_that_are_none(value):
    with pytest.raises(ProfileError, match=r"attestation|an identity key"):
        AttestationPolicy.from_object(value)


def test_an_attestation_key_of_another_algorithm():
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

    from sealgate.protocol.dsse import public_pem

    pem = public_pem(MLDSA65PrivateKey.generate().public_key())
    with pytest.raises(ProfileError, match="on P-256"):
        AttestationPolicy.from_object(tpm2(keys=[OURS_PEM, pem]))


# Verifiers from elsewhere.


class OfTests:
    """Takes evidence that repeats the nonce."""

    def verify(self, evidence, *, nonce):
        if evidence.get("nonce") != nonce.hex():
            raise AttestationError("another nonce")
        return {"state": "tested"}


def test_a_verifier_that_the_caller_brings():
    policy = AttestationPolicy({"of-tests": OfTests()})
    evidence = {"type": "of-tests", "nonce": SIGNED.nonce.hex()}
    found = policy.check(replace(SIGNED, attestation=evidence))
    assert found == Attested("of-tests", {"state": "tested"})
    with pytest.raises(AttestationError, match="another nonce"):
        policy.check(replace(SIGNED, attestation=evidence, not_after=2001))


def test_a_verifier_that_a_package_brings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    metadata = tmp_path / "verifier_of_tests-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: verifier-of-tests\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(
        "[sealgate.attestation_verifiers]\nof-tests = verifier_of_tests:make\n"
    )
    (tmp_path / "verifier_of_tests.py").write_text(
        "class Verifier:\n"
        "    def __init__(self, value): self.value = value\n"
        "    def verify(self, evidence, *, nonce):\n"
        "        return {'asked': self.value['for']}\n"
        "def make(value): return Verifier(value)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    policy = AttestationPolicy.from_object({"types": {"of-tests": {"for": "this"}}})
    found = policy.check(replace(SIGNED, attestation={"type": "of-tests"}))
    assert found == Attested("of-tests", {"asked": "this"})
    sys.modules.pop("verifier_of_tests")


# Profiles and options.


def test_a_profile_says_what_to_demand(tmp_path: Path):
    profile = Profile(
        url="http://127.0.0.1:1",
        token="t",
        identity_keys=(OURS_PEM,),
        attestation={"types": TYPES},
    )
    (tmp_path / "profile.json").write_bytes(profile.to_json())
    options = options_of(Profile.load(tmp_path / "profile.json"))
    assert options.attestation is not None
    assert options.attestation.required
    with pytest.raises(ProfileError, match="types names no kind"):
        options_of(replace(profile, attestation={}))
    (tmp_path / "profile.json").write_text(
        '{"url": "http://127.0.0.1:1", "token": "t", "attestation": true}'
    )
    with pytest.raises(ProfileError, match="attestation is not an object"):
        Profile.load(tmp_path / "profile.json")


@pytest.mark.parametrize(
    "pins", [{}, {"key_configs": b"x", "identity_keys": (OURS_PEM,)}]
)
def test_a_policy_without_the_keys_that_evidence_comes_with(pins):
    policy = AttestationPolicy({"of-tests": OfTests()})
    with pytest.raises(ProfileError, match="needs identity_keys, and no key_configs"):
        Options(attestation=policy, **pins)
