"""The paper's theory as code: inference learning as implicit gradient descent.

`proximal` solves the proximal objective (eqs. 5 and 6), `theorem1` makes the weights of
Theorem 1, and `newton` the step of Theorem 2.
"""
