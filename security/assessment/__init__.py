"""What a model withstands, measured on rows it never saw: one engine, two commands.

`scan` asks a file, a bundle or an endpoint everything, and writes a report; `assess`
is a profile of the same that writes a bundle's evidence.

engine       runs: registry of checks, units of work by one process or several, reports
checks       what is asked of a model: quality, fairness, evasion, privacy, poisoning, …
plan         what checks work with: options, the fitted job, units of work
targets      models and rows: files, endpoints, answers, the space that attacks move in
results      what checks conclude: metrics with intervals, findings, scan.json
reporting    SARIF, JUnit, HTML, and what changed between two reports
torch_graph  an ONNX graph as a torch module, for gradients
art_library  importing ART without its side effects
calibration  quantiles that make intervals, or sets of classes, of answers
sklearn_library  importing scikit-learn without what is never used of it
imported     models from elsewhere: inspected, then described
parity       whether they answer what their author says
trial        their first run, confined: which shapes really come
"""
