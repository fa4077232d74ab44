"""Which ensemble answers, by what models say of ensembles: never a mixture, never a smaller one."""

from __future__ import annotations

import pytest
from atlas_attention.triton import ServerModels
from atlas_attention.triton.ensemble import agreed
from atlas_core.ensembles import EnsembleDescription, MemberRole
from atlas_core.errors import InvalidInput, NotFound, Unavailable
from atlas_core.model_spec import ModelSpec


def spec(name: str, version: int = 0) -> ModelSpec:
    return ModelSpec(
        name=name, version=version, architecture="unet", organs=("liver",),
        spacing_mm=(1.5, 1.5, 1.5), patch=(8, 8, 8), hu_window=(-175.0, 250.0), sha256="a" * 64,
    )  # fmt: skip


def said(revision: int, *members: str, in_use: bool = True) -> EnsembleDescription:
    roles = {name: MemberRole.VOICE for name in members if name != "scout"}
    if "scout" in members:
        roles["scout"] = MemberRole.LOCATOR
    return EnsembleDescription(revision=revision, in_use=in_use, members=roles)


def models(*names: str, described: dict[str, list[EnsembleDescription]]) -> ServerModels:
    flat = tuple((name, one) for name, ones in described.items() for one in ones)
    return ServerModels(tuple(map(spec, sorted(names))), dict.fromkeys(names, 0), flat)


def voices(server: ServerModels, name: str = "") -> list[str]:
    return [one.name for one in server.choose(name).voices]


def test_only_members_answer_whatever_else_is_in_service() -> None:
    server = models("a", "b", "c", "scout", described={"site": [said(1, "a", "b", "scout")]})
    assert voices(server) == voices(server, "site") == ["a", "b"]
    locator = server.choose().locator
    assert locator is not None
    assert locator.name == "scout"


def test_a_member_that_is_missing_is_an_error_and_not_a_smaller_ensemble() -> None:
    server = models("a", described={"site": [said(1, "a", "b")]})
    with pytest.raises(Unavailable, match=r"ensemble site is not complete.*without b"):
        server.choose()
    assert server.ensembles()[0].missing == ("b",)


def test_while_an_ensemble_changes_the_newest_complete_one_answers() -> None:
    """Whichever models have been loaded with the new description already."""
    grows = {"site": [said(1, "a"), said(2, "a", "b")]}
    assert voices(models("a", described=grows)) == ["a"]
    assert voices(models("a", "b", described=grows)) == ["a", "b"]
    other = {"old": [said(1, "a")], "new": [said(2, "b")]}
    assert voices(models("a", described=other)) == ["a"]
    assert voices(models("a", "b", described=other)) == ["b"]
    # Of the one that came out of use, models say so when they are loaded again.
    ended = {"old": [said(1, "a"), said(3, "a", in_use=False)], "new": [said(4, "b")]}
    assert voices(models("a", "b", described=ended)) == ["b"]


def test_an_ensemble_is_named_and_its_versions_pinned() -> None:
    server = models(
        "a", "b", described={"site": [said(1, "a")], "trial": [said(2, "a", "b", in_use=False)]}
    )
    assert voices(server, "trial") == ["a", "b"]
    pinned = server.choose("trial", ["b@0", "a@0"])
    assert (pinned.name, [one.name for one in pinned.voices]) == ("trial", ["a", "b"])
    with pytest.raises(InvalidInput, match="not the models of ensemble trial"):
        server.choose("trial", ["a@0"])
    with pytest.raises(NotFound, match="ensemble gone is not loaded"):
        server.choose("gone")
    none = models("a", described={"site": [said(1, "a", in_use=False)]})
    with pytest.raises(Unavailable, match="no ensemble is in use"):
        none.choose()


def serving(version: int, *loaded: int) -> ServerModels:
    return ServerModels(tuple(spec("a", t) for t in loaded), {"a": version})


def in_use(server: ServerModels) -> list[int]:
    return [one.version for one in server.choose().voices]


def test_a_switch_counts_when_all_have_made_it() -> None:
    before = agreed([serving(0, 0), serving(0, 0)])
    trial = agreed([serving(0, 0, 1), serving(0, 0)], before)
    assert in_use(trial) == [0]
    half = agreed([serving(1, 0, 1), serving(0, 0, 1)], trial)
    assert in_use(half) == [0]
    assert in_use(agreed([serving(1, 0, 1), serving(1, 0, 1)], half)) == [1]


def test_who_was_not_there_before_believes_the_most() -> None:
    assert in_use(agreed([serving(1, 0, 1), serving(1, 0, 1), serving(0, 0)])) == [1]


def test_a_server_without_models_has_no_say() -> None:
    assert agreed([serving(1, 1), ServerModels()]) == serving(1, 1)
    assert agreed([ServerModels(), ServerModels()]) == ServerModels()


def test_an_ensemble_changes_when_all_servers_say_so() -> None:
    old = models("a", "b", described={"site": [said(1, "a")]})
    changing = models("a", "b", described={"site": [said(1, "a"), said(2, "a", "b")]})
    new = models("a", "b", described={"site": [said(2, "a", "b")]})

    def heard(*servers: ServerModels) -> list[str]:
        return [one.name for one in agreed(servers).choose().voices]

    assert heard(changing, old) == ["a"]
    assert heard(new, changing) == ["a", "b"]
    # One that started with what was before does not hold the others back for ever.
    assert heard(new, old) == ["a", "b"]


def test_an_ensemble_is_made_of_what_any_server_has() -> None:
    one = models("a", described={"site": [said(1, "a", "b")]})
    other = models("b", described={"site": [said(1, "a", "b")]})
    assert [s.name for s in agreed([one, other]).choose().voices] == ["a", "b"]
