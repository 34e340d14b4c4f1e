"""What the server says of itself.

metrics     what Prometheus is told: every family and label
counters    the numbers behind it, in memory that the workers' files share
recorder    what is written down about each request
logs        lines of JSON, one for each request if wanted
tracing     W3C Trace Context
spans       which requests are traced, and what is told of them
exports     what is sent to an OTLP receiver: as the environment says
            (export_settings), as JSON (otlp), by a thread (exporter)
casualties  what each worker runs now, in a file that outlives it
"""
