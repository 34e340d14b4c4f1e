"""What a model withstands, measured on rows it never saw.

findings          rules of structural inspection: ids, severities, limits
structure         inspection of an untrusted ONNX file, in a bounded child process
structure_child   that process: `python -m security.assessment.structure_child`
graph_rules       what it checks before ONNX's own checker runs
structure_calls   functions: names, cycles, how far calls expand
structure_tensors declared against stored bytes, external data
backdoor          branches that a value of the input decides, explained
backdoor_flow     the graph with functions and bodies inlined, as a data flow
backdoor_kinds    what each value is: data, a test of the input, a constant, ...
backdoor_operators  operators by what they do to such values
backdoor_paths    from the trigger to the output, in words
intervals         confidence intervals
onnx_torch        ONNX graph to torch, operator by operator, for gradients
scaled_model      a bundle's model in units of its scaled features
art_library       importing ART without its side effects
quality           accuracy, AUC, calibration
fairness          rates by group of people, and how far apart
robustness        PGD within a ball, re-checked on onnxruntime
tradeoff          the same for another model beside it: what robustness cost
membership        who was in the training data
imported          models from elsewhere: inspected, then described
run               a bundle's whole assessment, written at once
scan              one command at a file or an endpoint: plan, targets, runner, report
reporting         SARIF, JUnit, HTML, and what changed between two reports
privacy           who was in the training data, and what a copy costs
evasion           attacks on the input, and what they prove
"""
