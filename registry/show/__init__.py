"""Output for people: log lines, pictures, figures.

journal   printed lines, also written to a log, and progress bars
pictures  grids of samples, single images
images    sets of images, read with a bar
notebook  what a notebook shows of our objects
figures   curves over kimg, points in the plane
trackers  numbers and pictures for TensorBoard, Weights & Biases, or a plugin's tracker
"""
