"""Write a model for another library or runtime: torchvision, OpenMMLab, open_clip, ONNX, ncnn.

`targets.export` writes, `targets.TARGETS` is the table of targets, and there is one module for each:

loading.open_export_model    a published student or any timm model, as `ExportModel`
graph                        a model with its normalisation inside: what onnx, onnx_int8 and ncnn write
key_mapping                  timm's layer names as a list: what torchvision and openmmlab rename
"""
