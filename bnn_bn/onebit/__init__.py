"""Packed 1-bit networks. Imports `layers`, the networks, `others`, `files` and `weights`.

graph, fold                what is left of a network: thresholds, signs, scales; its file
stem                       the first convolution in whole numbers, on the bytes of a picture
fold_steps                 the same for networks of other packages
packable                   what can be packed
latent, unpack             latent weights for given signs; from a file back to a training network
counting, tiles, kernels   sums of products by popcount or table, compiled
native                     compiled once, and kept in a file that needs no numba
engine                     a whole network in one compiled call, on several threads
"""
