"""What people look at.

journal   lines for people, kept in a log, and progress bars
pictures  grids of samples, single images
figures   curves over kimg, points in the plane
"""
