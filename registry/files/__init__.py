"""Files: where they are, what is in them, and how they are written. Nothing in a file is executed.

locate      finds the path for what the user typed: beside the recipe, shipped, published, a URL
paths       kinds of paths as settings, and the settings of a teacher that is read from a file
downloads   fetches URLs into the cache
cache       what lies there, and removing it
json_files  small files of ours, read with a schema
json_lines  statistics and measurements, a line each, as runs write them
finite      whether tensors are finite
bounds      what a file of ours may ask for
facts       what a file says about its network
kinds       whether a foreign network is a denoiser or a generator, by its file's name and layout
plain       our own containers: plain tensors (.pt) and safetensors
formats     reads a network from any supported file, and writes it in our formats
handover    writes one of our training states as one that SiD's loop resumes
teachers    builds a teacher from a file
describe    a readable summary of a file's contents
"""
