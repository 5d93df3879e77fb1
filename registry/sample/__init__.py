"""Makes images from seeds.

heun      EDM's deterministic sampler, for teachers of every D
origin    what a network was trained with, from its file: kind, D, noise, noise levels
sampler   a sampler for any network file
generate  images for many seeds as PNG files, one .npz or a grid; shared among processes, resumable
"""
