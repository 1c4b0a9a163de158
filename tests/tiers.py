"""What `make test` runs, and what it leaves to `make test-faults`."""

from collections.abc import Iterable
from typing import Any

import pytest


def thorough(cases: Iterable[Any]) -> list[Any]:
    """The cases of a parametrised test of lines that its other cases guard too.

    A plain tuple stands for several arguments, as in `pytest.mark.parametrize`.
    """
    return [_marked(case) for case in cases]


def _marked(case: Any) -> Any:
    if isinstance(case, type(pytest.param())):
        marks = (*case.marks, pytest.mark.exhaustive)
        return pytest.param(*case.values, id=case.id, marks=marks)
    values = case if type(case) is tuple else (case,)
    return pytest.param(*values, marks=pytest.mark.exhaustive)
