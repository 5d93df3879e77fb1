"""Training: the loop, and everything that touches a batch, but for the plugin's loss and kernel.

loop         the distillation, IPFM's and SiD's Algorithm 1: read this first
step         a network that learns: accumulate parts of a batch, then step; all guards against non-finite values
reduction    gradients summed over processes, while the backward pass runs
generator    G: the network applied to noise, once or K times
ema          the generator's average
kernels      the perturbation kernel x_r = x + sigma·s·z, and the laws of noise levels
losses       the weights, the denoising loss, and the game that SiD and IPFM share
data         real images, for a teacher's training and for losses that want them
passes       how networks compute in a step: precision, compiled or not, with how much memory
recompute    activations that are computed again in the backward pass: less memory
cost         what a step costs, counted without values
pretraining  a teacher from images: the student's step, fed with data
"""
