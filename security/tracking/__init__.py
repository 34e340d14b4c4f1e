"""What other people's trackers of models and data say: MLflow, DVC.

addresses     models and runs of MLflow, by their URIs
mlmodel       which file of a model of MLflow is the ONNX file
client        MLflow's client: the only module that imports it
fetched       a model's ONNX file, from MLflow, within bounds
logged        what a bundle's evidence is as metrics, tags and artifacts
training_run  a training as a run of MLflow
dvc           the digest that DVC has recorded of a file
"""
