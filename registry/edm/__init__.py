"""The formats and networks of the EDM family (EDM, PFGM++, SiD, the IPFM fork).

networks       SongUNet, DhariwalUNet and the preconditionings, in one file whose source is embedded in our snapshots
architectures  ddpmpp, ncsnpp and adm, as arguments to these networks
pickles/       reads network snapshots and training states without executing anything
snapshots      writes network snapshots that those projects' scripts can open
sid_states     reads SiD's training states, and writes those that SiD's loop resumes
datasets       loads training images: folders, ZIPs, the digits
image_files    opens pictures of strangers
archive        makes data sets in EDM's layout
latents        the latents of PFGM++'s generation script
"""
