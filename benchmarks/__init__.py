"""What docs/performance.md is made from: `make bench` runs every module here.

sealing   gateway work per request, beside the floor
gate      reading and verifying a bundle
server    CPU time per request of the real server, sealed and plaintext
peers     beside other servers: BentoML, Starlette, MLServer, Triton
soak      memory and p99 over 200,000 requests
monitoring  counting and releasing, and what is found on real streams
conformal  what intervals and sets cost an answer, and what they hold
throughput  large tensors through the real server, sealed against plaintext
"""
