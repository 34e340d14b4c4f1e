"""The BentoML service: the only place that knows HTTP and the environment.

app           wiring, and the service that bentofile.yaml names
guard         the outermost ASGI layer: every request meets it first
gateway       opens sealed requests, seals the answers (RFC 9458)
turns         inferences that came whole in one turn, answered side by side
errands       what is known of each of them
routes        /v2/*: who may, what is asked, what is answered
inferences    one inference: charged, run, written down
content       the content of inference requests and answers, within bounds
explanations  what is asked of an explanation, and how it is answered
feedback      tickets that answers carry, labels that bring them back
offering      the public log of keys, release and verdicts in use
receipts      proof that an answer's record is in the audit log
repository    what is told of all models: the list, the index, statistics
descriptions  what is told of the server and of a model
watching      what monitoring found of what is served, read by a thread
readiness     whether this worker should be sent requests
callers       who calls, and how a refusal says to do better
access        what decides about callers, made from the settings
forking       workers that go on from what their parent has imported
supervision   the parent process and its workers, who may die
problems      every refusal that a caller can see (RFC 9457): only it knows status codes
http          connections, TLS, and the bounds on what arrives
inference     the lineup of admitted models, batching, sessions
telemetry     metrics, records, logs, traces
"""

import sys

import models  # noqa: F401  (before onnxruntime: it switches off what that would send)

# BentoML's commands, which import this, have asked by then whether they may report, and
# remember the answer.
_reports = sys.modules.get("bentoml._internal.utils.analytics.usage_stats")
if _reports is not None:
    _reports.do_not_track.cache_clear()
