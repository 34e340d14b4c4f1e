"""What a hostile ONNX file may not do, found without running it.

findings            rules of structural inspection: ids, severities, limits
structure           inspection of an untrusted ONNX file, in a bounded child process
child               that process: `python -m security.inspection.child`
confined            that process's start, limits and end; `import` has one like it
engine              what the pinned onnxruntime loads, as constants
wire                the bytes against what was parsed: unknown fields, fields twice
rules               what it checks before ONNX's own checker runs
description         what a file says of itself: producer, operators, hidden texts
calls               functions: names, cycles, how far calls expand
tensors             declared against stored bytes, external data
order               nodes in the order in which they need each other
execution           rounds of loops, random numbers, integer divisions
backdoor            branches that a value of the input decides, explained
backdoor_flow       the graph with functions and bodies inlined, as a data flow
backdoor_kinds      what each value is: data, a test of the input, a constant, ...
backdoor_operators  operators by what they do to such values
backdoor_paths      from the trigger to the output, in words
"""
