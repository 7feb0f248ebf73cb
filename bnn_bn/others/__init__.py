"""Networks that are not ours. Imports `layers` and the networks.

published                     weights as the authors and mmpretrain name them
realnet, whitened             real teachers, and the first layer that one of them is given
netgraph, branches, variance  a network as a graph, its residual sums, the variance without a norm
normfree, to_bits             no norm in a network's place; one bit in its convolutions
described                     any network of known layers as a file can hold it
"""
