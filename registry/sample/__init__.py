"""Seeds to images.

heun      EDM's deterministic sampler, for teachers of every D
origin    what a network was trained with, by its file: kind, D, noise, noise levels
sampler   a sampler for whatever a file holds
generate  images for many seeds, shared among processes, resumable: PNG files, one .npz, a grid
"""
