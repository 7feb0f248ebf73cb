"""Long trainings. Imports `layers`, `signal`, the networks, data, learner and checkpoint.

ema, throughput            averaged weights, images a second
speed, sizes               compilation and fused optimizers; smaller pictures first
teachers, distill          trained networks of others, and a loss that follows them
vision                     fastai's `vision_learner` with a head free of norms
resume                     a state that ends with the same bits
steps                      1-bit activations first, then weights too
processes                  several GPUs
own, plan                  own pictures; how long and how large a run will be
failures                   what a command says when it fails
options                    the words of a training
recipes, run, runs, demo   trainings as rows of a table, and what a command makes of one
"""
