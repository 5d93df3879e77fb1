"""Measures sets of images and prints the tables that people read.

distances     Fréchet and sliced Wasserstein distances, as pure functions of tensors
fid           FID and KID, from Inception features
inception     Inception features and their statistics, as in EDM
classifier    the small network whose features are used for small images
measuring     from seeds to images to every metric's numbers, shared among processes
rows          rows of numbers, and tables of rows
teacher_rows  the teacher's rows, measured once and saved beside its file
evaluate      measures a network's file as the papers do, and records everything that the numbers depend on
"""
