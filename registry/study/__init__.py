"""Studies: a grid over settings of a recipe × training seeds, run, measured, tested and drawn.

definition   a study's file and what is laid over it -> a valid Study
grid         axes -> combinations of settings, each as the overrides of one run; pure
cells        a cell: one combination and one seed, its folder, and how far it is
attempts     one attempt at a cell: a process that runs a command, and what it left
local        cells in parallel on this machine
slurm        cells as a Slurm array
sources      what the files that recipes name hold, and whether it was the same for all runs
reuse        finished runs copied from other studies
progress     what is seen while cells run
machine      cores, GPUs, versions
results      from run folders to numbers
statistics   paired tests, their correction, values at equal time; pure
summary      means, counts and tests of all combinations
sheets       tables as text, for Markdown, page, terminal, and CSV
charts       figures
page         the page, from the template page.html
conduct      a study from beginning to end
"""
