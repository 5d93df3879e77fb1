"""Measures sets of images and prints the tables that people read.

distances        Fréchet and sliced Wasserstein distances and the Inception score, as pure functions of tensors
fid              FID and KID, from Inception features
neighbours       precision, recall, density and coverage, from any features
feature_network  what a network is to a metric that compares features
inception        Inception features, class probabilities and statistics, as in EDM
classifier       the small network whose features are used for small images
torchscript      a feature network of the user's, such as DINOv2
measuring        from seeds to images to every metric's numbers, shared among processes
guarded          a plugin's metric, held to its contract
protocol         what numbers depend on besides the images
rows             rows of numbers, and tables of rows
saved            results as files keep them
comparison       one table of results from several files, with marks where protocols are unlike
teacher_rows     the teacher's rows, measured once and saved beside its file
evaluate         measures a network's file as the papers do, and records everything that the numbers depend on
"""
