"""What a model withstands, measured on rows it never saw.

intervals         confidence intervals
torch_graph       an ONNX graph as a torch module, for gradients
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
