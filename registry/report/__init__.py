"""The page of a run, and of several runs: read from run folders alone, whether they run, are done, or were stopped.

history  what a run's folder holds: recipe, statistics, measurements, pictures, table
courses  the curves of a page: which, against what, and how to read them
render   histories -> one HTML file with everything inside
uplot/   the charts' library (uPlot 1.6.32, MIT), as it is published
"""
