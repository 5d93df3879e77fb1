"""The ground floor: what everything else may import, and what imports nothing of this project.

errors       exceptions with messages of one line: UserError, SettingError, Interrupted
settings     the base of every component's settings, kinds of numbers, the settings that all kernels share
contracts    the interfaces of a teacher, a noise, a loss and a metric
seeds        as people write them
streams      one random stream per image
philox       the numbers in them, from counters
float64      the widest numbers that a device has
atomic       writes files and folders whole or not at all
seal         says whether a file is what was written
zips         members of zip files, unpacked as far as they say
surroundings torch's settings and random states, which belong to the caller
locks        on files; they go with the process
levels       every schedule of sigma
interruption signals that ask a run to stop
distributed  torchrun's processes, and this process's device
joining      how processes meet, and tell what went wrong
sharding     networks of which every process holds a part
text         text from files, made safe to print
templates    of pages and texts
version      of this package, and of what measured something
"""
