"""Whole runs, from a recipe to a run folder: one function per kind of run, and what they share.

distill       distil a teacher into a generator
pretrain      train a teacher from images
features      train the feature network of the Fréchet distance
plan          what a run needs: work, memory, time
building      teacher, noise, loss, metrics, generator of a recipe, and that they fit each other
built         what plugins have built is checked before it is used
starting      device and processes, a new folder or that of a state
training      what happens around a loop: after every iteration, and after a signal
ending        how a run ends: its folder is given back, and says why if it failed
schedule      when a tick, a snapshot, a state is due
threads       how many threads torch computes with on the processor
ticks         a line of the log and of the statistics
outputs       what a snapshot leaves: pictures, the network's file, its metrics, the best so far
clock         seconds of training so far
checkpoints   training states: saved, restored exactly
background    work that goes on beside the training
states        which state a run goes on from
health        whether a run still learns anything
foreign       going on from a training state of SiD
folder        the run folder, which one run writes into
"""
