"""Errors of what one party decides: secrets, access, admission, offline work.

::

    SealgateError
    ├── SettingsError       a setting is missing, unknown or impossible
    ├── YamlError           not the plain YAML that the caller's bounds allow
    ├── TrackingError       MLflow cannot be asked, or a record of DVC contradicts
    ├── KeyFileError        a key file is missing, readable by others, or not that key
    │   └── TrustRefused    a trust root expired, or does not follow the last one
    ├── TimestampError      a time stamp is malformed, or of another signature
    │   └── StrangeStampError    it is of no authority that the trust root names
    ├── AttesterError       there is no evidence about this machine to be had now
    │   └── TpmError        its TPM cannot be asked, or refuses
    ├── AccessError         the caller may not; the answer depends on the subclass
    │   ├── TokenError      no valid token: 401
    │   │   └── ProofError  no valid proof that the token's key is there
    │   │       └── NonceError    it lacks a nonce of ours; carries one
    │   ├── CredentialsError    more or other credentials than one can be: 400
    │   ├── ScopeError      a valid token without the right: 403
    │   ├── HiddenError     nor the right to know that there is such a thing: 404
    │   ├── QuotaError      a quota of the caller is spent: 429
    │   │   └── ExtractionBudgetError    or what it may be told of a model: 429
    │   ├── KeysUnavailableError    the issuer's keys are not there yet: 503
    │   ├── IntrospectionError      the issuer cannot be asked about a token: 503
    │   └── RevocationStoreError    whether it is revoked cannot be told: 503
    ├── AdmissionRefused    a numbered check of the gate failed
    ├── ReplayError         this sealed request was answered before
    ├── ReplayStoreError    whether it was cannot be told: nothing is answered
    ├── DateError           the request's Date is missing or outside the window
    ├── BatchError          a batch job cannot be done, or would go on with another's
    ├── InferenceFailedError    onnxruntime refused an input that the manifest allows
    ├── PlanError           what is to be served cannot be, or cannot be read
    ├── QuotaStoreError     what was spent cannot be told: nothing is answered
    ├── RegistryError       a registry or an OCI layout does not give or take it
    ├── AuditError          a record cannot be written, or the log does not verify
    │   └── DisagreementError   a witness has seen another log
    ├── WitnessError        a witness of logs cannot start, or not keep what it saw
    ├── MonitoringError     a window, a count or a release makes no sense
    │   ├── BookedError     that release was booked before: it is made once
    │   ├── BudgetSpentError    the year's budget does not reach for a release
    │   └── MonitoringStoreError    the store of counts and of the ledger is away
    ├── TrainingError       the training cannot be private, or cannot run
    │   └── LedgerError     the budget is spent, or the ledger cannot be written
    └── AssessmentError     the model or the data cannot be assessed
        ├── HostileModel    the structural inspection found an error
        ├── UnboundedModel  no bound is known of an operator, or of the decision
        └── BudgetError     the scan has used up the queries or the time it may
"""

from __future__ import annotations

from sealgate.errors import SealgateError

__all__ = [
    "AccessError",
    "AdmissionRefused",
    "AssessmentError",
    "AttesterError",
    "AuditError",
    "BatchError",
    "BookedError",
    "BudgetError",
    "BudgetSpentError",
    "CredentialsError",
    "DateError",
    "DisagreementError",
    "ExtractionBudgetError",
    "HiddenError",
    "HostileModel",
    "InferenceFailedError",
    "IntrospectionError",
    "KeyFileError",
    "KeysUnavailableError",
    "LedgerError",
    "MonitoringError",
    "MonitoringStoreError",
    "NonceError",
    "PlanError",
    "ProofError",
    "QuotaError",
    "QuotaStoreError",
    "RegistryError",
    "ReplayError",
    "ReplayStoreError",
    "RevocationStoreError",
    "ScopeError",
    "SettingsError",
    "StrangeStampError",
    "TimestampError",
    "TokenError",
    "TpmError",
    "TrackingError",
    "TrainingError",
    "TrustRefused",
    "UnboundedModel",
    "WitnessError",
    "YamlError",
]


class SettingsError(SealgateError):
    """A setting is missing, unknown or impossible."""


class YamlError(SealgateError):
    """Not the plain YAML that the caller's bounds allow."""


class TrackingError(SealgateError):
    """MLflow cannot be asked, or a record of DVC contradicts the file."""


class KeyFileError(SealgateError):
    """A key file is missing, readable by others, or does not hold what it must."""


class TrustRefused(KeyFileError):  # noqa: N818  (it is a verdict, not a mishap)
    """A trust root has expired, is signed by too few, or does not follow the last."""


class TimestampError(SealgateError):
    """A time stamp is malformed, or of another signature; or none can be had."""


class StrangeStampError(TimestampError):
    """There is no time stamp, or none of an authority that the trust root names."""


class AttesterError(SealgateError):
    """There is no evidence about this machine to be had now."""


class TpmError(AttesterError):
    """A TPM cannot be asked, or refuses; the message shows no secret."""


class AccessError(SealgateError):
    """Root of refusals of a caller."""


class TokenError(AccessError):
    """No valid token. The message is for the log; a stranger learns only that."""


class ProofError(TokenError):
    """No valid proof of possession of the key that the token is bound to (RFC 9449)."""


class NonceError(ProofError):
    """A proof without a nonce of this server, or with an old one (RFC 9449, 9).

    Attributes:
        nonce: the one to use.
    """

    def __init__(self, nonce: str) -> None:
        self.nonce = nonce
        super().__init__("proof has no nonce of ours")


class CredentialsError(AccessError):
    """Credentials that cannot be told apart, or twice (RFC 6750, section 3.1)."""


class ScopeError(AccessError):
    """A valid token that does not grant the action."""


class HiddenError(AccessError):
    """A valid token that does not even grant knowing whether there is such a thing."""


class KeysUnavailableError(AccessError):
    """An issuer's keys could not be fetched yet: no token of it can be verified."""


class IntrospectionError(AccessError):
    """An issuer could not be asked about a token: nobody can tell if it is valid."""


class RevocationStoreError(AccessError):
    """Whether a token is revoked cannot be told: nothing is answered."""


class AdmissionRefused(SealgateError):  # noqa: N818  (it is a verdict, not a mishap)
    """A check of the admission gate failed.

    Attributes:
        check: the number of the check in `security.admission.gate`.
        reason: the message without it.
    """

    def __init__(self, check: int, message: str) -> None:
        self.check = check
        self.reason = message
        super().__init__(f"{message} [check {check}]")


class ReplayError(SealgateError):
    """A sealed request whose encapsulated key was seen before (RFC 9458, 6.5)."""


class ReplayStoreError(SealgateError):
    """The store of seen requests cannot be asked, or is full."""


class DateError(SealgateError):
    """A request's Date is missing, malformed or too far from the clock (6.5.2)."""


class BatchError(SealgateError):
    """A batch job cannot be done, or would go on with what another one began."""


class InferenceFailedError(SealgateError):
    """onnxruntime refused an input that the manifest allows."""


class PlanError(SealgateError):
    """A plan of what to serve is malformed, or a change of it makes no sense."""


class QuotaError(AccessError):
    """A quota of the caller is spent.

    Attributes:
        policies: names of the budgets.
        retry_after_s: when to come back; None if the request asks for more than there
            ever is.
        fields: header fields that say where the caller stands.
    """

    def __init__(
        self,
        policies: tuple[str, ...],
        retry_after_s: int | None,
        fields: tuple[tuple[bytes, bytes], ...],
    ) -> None:
        self.policies = policies
        self.retry_after_s = retry_after_s
        self.fields = fields
        super().__init__(", ".join(policies))


class ExtractionBudgetError(QuotaError):
    """The caller has been told of a model what it may be told in these weeks."""


class QuotaStoreError(SealgateError):
    """The store of quotas cannot be asked, or is full."""


class RegistryError(SealgateError):
    """A registry or an OCI layout does not have what was asked for, or takes it not."""


class AuditError(SealgateError):
    """An audit record cannot be written, or a log does not verify."""


class DisagreementError(AuditError):
    """A witness has seen more of the log than there is, or another one."""


class WitnessError(SealgateError):
    """A witness of transparency logs cannot start, or cannot keep what it saw."""


class MonitoringError(SealgateError):
    """A window, a count or a release makes no sense."""


class BookedError(MonitoringError):
    """A release was booked before, here or elsewhere: it is made once."""


class BudgetSpentError(MonitoringError):
    """The budget of the rolling year does not reach for a release."""


class MonitoringStoreError(MonitoringError):
    """The store of counts, or the ledger, cannot be asked, or is full."""


class TrainingError(SealgateError):
    """A training cannot be private, or cannot run."""


class StoppedElsewhereError(TrainingError):
    """Another process of the same training stopped, and has said why."""


class LedgerError(TrainingError):
    """The privacy budget is spent, or the ledger cannot be read or written."""


class AssessmentError(SealgateError):
    """A model or its data cannot be assessed."""


class HostileModel(AssessmentError):  # noqa: N818  (it is a finding, not a mishap)
    """The structural inspection found an error; nothing else may parse the file."""


class UnboundedModel(AssessmentError):  # noqa: N818  (it is a limit, not a mishap)
    """No bound is known of an operator of the graph, or of what it decides by."""


class BudgetError(AssessmentError):
    """A scan has used up the queries or the time that it was given."""
