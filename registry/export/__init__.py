"""The way out: a generator for people who do not have this package.

graph       latents -> images as one function: ONNX, and a program of torch.export
standalone  what the exported folder samples with; it imports torch and safetensors alone
source      standalone and the modules that it needs, as one file
card        the model card: what it is, from which teacher, its numbers, how to sample
hub         the folder: weights, config, code, card, pictures
targets     which of these a name asks for
"""
