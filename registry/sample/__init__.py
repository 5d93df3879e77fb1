"""Makes images from seeds.

heun      EDM's deterministic sampler, for teachers of every D
origin    what a network was trained with, from its file: kind, D, noise, noise levels
sampler   a generator or a teacher that is ready to sample
steps     how many steps a network is sampled with
opening   the network in a file, as a sampler
generate  images for many seeds as PNG files, one .npz or a grid; shared among processes, resumable
"""
