"""Files: where they are, what is in them, and how they are written. Nothing found in a file is executed.

atomic      every write: whole or not at all
locate      from what the user typed to a path: beside the recipe, shipped, published, a URL
paths       kinds of paths as settings, and the settings of a teacher that is read from a file
downloads   URLs, kept in the cache
facts       what a file tells about its network
plain       our own containers: plain tensors (.pt) and safetensors
formats     a network from any readable file, and into any of ours
teachers    a teacher from a file
describe    what is in a file, for people
"""
