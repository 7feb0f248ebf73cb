"""Binary neural networks without batch normalisation, for fastai.

Doors:     models (the networks), data, folder, learner (a fastai Learner), agc (gradient clipping),
           checkpoint (files of weights), deploy (packed 1-bit networks), export (ONNX),
           convert (any network without batch norm), cost, bench, plots; all, for star imports.
Behind:    layers (sign, thresholds, convolution, blocks), signal (variance, and the start that sets
           it), train (speed, a teacher, resume, recipes, runs), onebit (file and engine of a packed
           network), others (graphs and weights of networks that are not ours).
Commands:  python -m bnn_bn lists them.
Begin:     from bnn_bn.models import reactnet_nobn; help(reactnet_nobn)
"""
from ._old_names import find_old_names as _find_old_names

__version__ = "0.1.0"
_find_old_names()
