"""Networks that are not ours. Imports `layers` and the networks.

published, realnet            weights as the authors and mmpretrain name them; a real teacher
netgraph, branches, variance  a network as a graph, its residual sums, the variance without a norm
normfree                      a convolution that needs no norm, and what replaces the others
"""
