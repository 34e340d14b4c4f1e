"""What docs/performance.md is made from: `make bench` runs every module here.

sealing   gateway work per request, beside the floor
gate      reading and verifying a bundle
server    CPU time per request of the real server, sealed and plaintext
throughput  large tensors through the real server, sealed against plaintext
"""
