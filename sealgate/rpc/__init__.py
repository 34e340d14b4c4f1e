"""The sealing proxy's gRPC side: protocol v2 in front, sealed HTTP behind.

Needs the extra ``sealgate[grpc]``; nothing else of the client imports this room.

listener       the server: who may ask, how much, how long
messages       requests and answers, from gRPC to HTTP and back, without I/O
refusals       what went wrong, as gRPC's status and its details
inference_pb2  made from inference.proto, as its head says
"""
