"""How numbers are made: products, convolutions, sums and changes of functions.

Nothing here knows of networks or energies.
"""
