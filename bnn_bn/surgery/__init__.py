"""Networks of others, as graphs. Imports `layers`.

netgraph  the operations of a network, traced
branches  its residual sums and their branches
variance  the variance that each place should have without batch norm
normfree  a convolution that needs no norm, and what replaces the others
"""
