"""Model bundles, and what makes the model inside one.

errors          what a bundle, manifest or report can do wrong
files           bounded reads and atomic writes
manifest        manifest.json: tensors, limits
names           what names, versions and tags look like
output_policy   what may leave of answers, and how much that tells
release         outputs as a policy lets them leave
conformal       quantiles that make intervals and sets of answers
conforming      what they add to outputs, and where a model abstains
report          evidence/<kind>.json: what was measured, on what, under which conditions
metrics         the names of metrics, and what measures them          (offline)
bundle          the folder: read whole, hashed, bounded
restriction     another output policy for a bundle that nobody signed  (offline)
networks        names of architectures and feature maps
sessions        the only place that makes an onnxruntime session
explanations    how answers are explained: references, and what of them
shapley         Shapley values from answers about mixed rows
graph           the little of an ONNX file that is read without onnx
trees           tree ensembles, compiled for exact Shapley values
data            the one typed table: readers, schema, rows, splits     (offline)
additive        sums of one learnt curve per column, as torch modules      (offline)
architectures   torch modules that hold preprocessing and the network  (offline)
features        fixed feature maps of images: scattering              (offline)
messages        every message within an ONNX file                       (offline)
export          torch to ONNX, with parity against the original        (offline)
"""

import os

# onnxruntime's wheels report to their maker over the network from the moment they are
# imported, and keep an identifier of the machine; only this, set before, prevents it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# BentoML's commands report as well, unless they are told not to.
os.environ["BENTOML_DO_NOT_TRACK"] = "True"
