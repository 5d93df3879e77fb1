"""How good: numbers for sets of images, and the tables that people read.

distances     Fréchet distance, sliced Wasserstein distance, as pure functions of tensors
inception     Inception features and their statistics, as EDM has them; FID and KID are computed here
classifier    the small network whose features serve on small images
measuring     seeds -> images -> every metric's numbers, shared among processes
rows          rows of numbers, and tables of rows
teacher_rows  the teacher's rows, measured once and kept beside its file
evaluate      a network's file measured as the papers do it, with all that the numbers depend on
"""
