"""Slow NumPy transcriptions of the equations, the oracle for the library's tests.

One example at a time, float64, explicit loops over layers, derivatives by hand. Lists
of activities, predictions, errors and layer weights are indexed by l = 0..L as in the
paper, with None where a quantity does not exist (there is no p_0 and no e_0).
"""
