"""An ONNX graph as a torch module, for gradients.

module      the graph, operator by operator
operators   what each operator of ONNX is in torch
layers      operators with weights: Conv, Gemm, pooling, ...
steps       how a graph becomes steps in order
"""
