"""What all the others stand on. Imports nothing of ours.

errors    BnnError and its family
arguments wrong arguments are refused by name
files     files that are whole or not there
places    what was given in place of a file, and no run among pictures
unwrap    the network inside torch.compile, DataParallel and the like
trials    callbacks keep nothing of a fit that only tries a rate
plots     colours, axes and labels of all pictures
autocast  half precision on any device
signatures  options of a command from the source of its function
"""
