"""What a binary network is made of. Imports only core of ours.

binarize     the sign, and the derivatives that stand for its own
activations  thresholds and shapes that each channel learns: RSign, RPReLU
conv         the convolution with scaled standardised weights, real or binary
pixels       a first convolution with eight-bit weights, on the bytes of a picture
blocks       the residual blocks of ReActNet-18, ReActNet-A, Bi-Real and XNOR
signed       convolutions that take the sign of their input themselves
parts        signs, activations and blocks of one's own, by name
"""
