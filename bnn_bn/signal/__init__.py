"""How large the signal is inside a network. Imports `layers` and `plots`.

ledger  the variance that each block should have, and has
start   the calibrated start: what batch norm's first batch does, done once
probe   signal, gradient, dead channels and flips while a network trains
theory  the variance predicted from the layers alone
"""
