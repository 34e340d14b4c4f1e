"""The BentoML service: the only place that knows HTTP and the environment.

app        wiring, and the service that bentofile.yaml names
connections  the HTTP/1.1 connection: bounds on a request's head, and no upgrades
exchange   a request that came whole, answered on its connection
direct     how the rest of a body goes straight to who takes it
tls        TLS of the listening socket
guard      the outermost ASGI layer: every request meets it first
intake     how many requests are read and worked on, and what their bodies take
gateway    opens sealed requests, seals the answers (RFC 9458)
routes     /v2/*: who may, what is asked, what is answered
callers    who calls, and how a refusal says to do better
access     what decides about callers, made from the settings
logs       lines of JSON, one for each request if wanted
tracing    W3C Trace Context
recorder   what is written down about each request
problems   every refusal a caller can see (RFC 9457): the only place with status codes
metrics    what Prometheus is told: every family and label
counters   the numbers behind it, in memory that the workers' files share
follower   keeps the lineup at what the operator's plan says
lineup     the models that are served: versions, default, canary, shadow
agreement  whether two versions give the same answer
warmup     a model's first runs, and what they teach about it
batching   runs gathered from requests, bounded, stopped at their deadlines
memory     what a worker keeps of the memory it frees
watchdog   stops runs on the event loop that take too long
runtime    onnxruntime sessions over admitted bytes
signature  a session's values, against the manifest, as tensors
"""
