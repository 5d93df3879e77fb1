"""The formats and networks of the EDM family (EDM, PFGM++, SiD, the IPFM fork).

networks       SongUNet, DhariwalUNet and EDM's preconditioning, in one file whose source travels inside our snapshots
architectures  ddpmpp, ncsnpp and adm as arguments of these networks
pickles/       network snapshots and training states, read without executing anything
snapshots      network snapshots that those projects' scripts open, written
datasets       images to learn from: folders, ZIPs, the digits
archive        making data sets in EDM's layout
latents        the latents of PFGM++'s generation script
"""
