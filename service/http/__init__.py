"""Connections, TLS and the bounds on what arrives.

connections  what uvicorn's server speaks, and by which TLS
protocol     the HTTP/1.1 connection: one message at a time, within bounds
framing      where a message ends, and what is refused because others may differ
ending       what is said to whoever connects while the server ends
heads        heads that were parsed before, since clients repeat them
flow         how fast a connection reads and is read from
exchange     a request that came whole, answered on its connection
bodies       bodies, within bounds, however they arrive
cors         which pages of other origins may read an answer
direct       how a body goes straight to who takes it
tls          TLS of the listening socket
intake       how many requests are read and worked on, and what their bodies take
"""
