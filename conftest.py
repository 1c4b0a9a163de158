"""Of all tests, the doctests of one module among them."""

# Pytest loads the file of a doctest by its path. A package that is not yet imported
# would import it once more: each class would be there twice.
import pcjax  # noqa: F401
