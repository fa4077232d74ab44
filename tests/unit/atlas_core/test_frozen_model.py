"""What a person is told of a document that could not become a model."""

from __future__ import annotations

from typing import Any

import pytest
from atlas_core.frozen_model import Fault, FrozenModel, first_fault
from pydantic import ValidationError, field_validator


class Window(FrozenModel):
    width: int
    organs: tuple[str, ...] = ()

    @field_validator("width")
    @classmethod
    def _positive(cls, width: int) -> int:
        if width < 1:
            raise ValueError(f"a window of {width} shows nothing")
        return width


class Page(FrozenModel):
    windows: tuple[Window, ...]


def fault_of(document: Any, kind: type[FrozenModel] = Window) -> Fault:
    with pytest.raises(ValidationError) as refused:
        kind.model_validate(document)
    return first_fault(refused.value)


def test_it_says_where_and_what_stands_there() -> None:
    fault = fault_of({"windows": [{"width": 1}, {"width": "wide"}]}, Page)
    assert (fault.place, fault.where) == (("windows", 1, "width"), "windows.1.width")
    assert "integer" in fault.expected
    assert fault.got == "'wide'"


def test_a_whole_document_of_another_form_is_the_file() -> None:
    assert fault_of([]).where == "file"


@pytest.mark.parametrize("document", [{}, {"width": 0}])
def test_nothing_is_repeated_that_the_rule_says_or_that_is_not_there(document: Any) -> None:
    assert fault_of(document).got is None


def test_a_rule_of_our_own_stands_as_it_was_written() -> None:
    assert fault_of({"width": 0}).expected == "a window of 0 shows nothing"


def test_a_value_by_itself_is_shown_as_the_list_that_was_expected() -> None:
    assert fault_of({"width": 1, "organs": "liver"}).expected == "a list: [liver]"
    assert fault_of({"width": 1, "organs": {"liver": 1}}).expected == "a list"


def test_a_long_value_is_cut() -> None:
    got = fault_of({"width": "9" * 5000 + "a"}).got
    assert got is not None
    assert len(got) == 100
