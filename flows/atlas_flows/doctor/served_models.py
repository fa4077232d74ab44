"""Every member as it is served, by every server: right, and how quick?"""

from __future__ import annotations

from collections.abc import Iterator

from atlas_core.errors import AtlasError, NotFound
from atlas_core.model_spec import ModelSpec

from atlas_flows.doctor.findings import Diagnosis, Finding
from atlas_flows.doctor.reference import (
    expected_answers,
    largest_step,
    least_dice,
    reference_windows,
)
from atlas_flows.models import Site

AT_ONCE = 4
"""Windows with a model while its speed is measured."""

WINDOWS = 8


def served_models(
    site: Site, *, most_step: int, least: float, windows_a_second: float
) -> Iterator[Finding]:
    """A finding for each version that the ensembles need.

    Args:
        most_step: how far an answer may be from the CPU's, in steps of 255.
        least: Dice that masks must have with the CPU's.
        windows_a_second: what each server is to do, by each model; 0: no matter.
    """
    repository = site.repository
    specs = [spec for name in repository.needed() for spec in repository.served(name)]
    if not specs:
        yield Finding(
            check="models",
            verdict=Diagnosis.WRONG,
            found=f"the repository {repository.root} serves no model",
            remedy="bring one: `atlasloop models import`, then `atlasloop ensemble create`",
        )
    for spec in specs:
        check = f"model {spec.name}@{spec.version}"
        try:
            yield _served(check, spec, site, most_step, least, windows_a_second)
        except NotFound as missing:
            yield Finding(
                check=check,
                verdict=Diagnosis.DOUBTFUL,
                found=str(missing),
                remedy=str(missing.remedy or ""),
            )
        except AtlasError as error:
            yield Finding(
                check=check,
                verdict=Diagnosis.WRONG,
                found=str(error),
                remedy="see the model server's log; `atlasloop up`, or a restart of its pods, "
                "loads what the repository says",
            )


def _served(
    check: str, spec: ModelSpec, site: Site, most_step: int, least: float, wanted: float
) -> Finding:
    if not site.triton.is_loaded(spec.name):
        return Finding(
            check=check,
            verdict=Diagnosis.WRONG,
            found="a server does not have it loaded as the repository says",
            remedy="a server that started during a change may lack it: restart that server, or "
            "`atlasloop up` on one machine",
        )
    windows = reference_windows(spec)
    _, folder = site.models.find(spec.name, spec.version)
    expected = expected_answers(spec, folder, site.models.root)
    step, alike = 0, 1.0
    for window, cpu in zip(windows, expected, strict=True):
        for answer in site.triton.answers(spec, window):
            step = max(step, largest_step(answer, cpu))
            alike = min(alike, least_dice(answer, cpu))
    rates = site.triton.windows_a_second(spec, windows[0], count=WINDOWS, at_once=AT_ONCE)
    figures = {
        "largest_step": float(step), "dice": round(alike, 4),
        "windows_a_second": round(min(rates), 2), "servers": float(len(rates)),
    }  # fmt: skip
    said = (
        f"at most {step} steps of 255 from the CPU's answers, Dice {alike:.4f}; "
        f"{min(rates):.1f} windows a second by the slowest of {len(rates)} servers"
    )
    if step > most_step or alike < least:
        return Finding(
            check=check, verdict=Diagnosis.WRONG, found=said, figures=figures,
            remedy="what is served is not what was exported: install the model again; on a GPU see "
            "whether its engine was built in FP16 for this card (clear the engine cache)",
        )  # fmt: skip
    if min(rates) < wanted:
        return Finding(
            check=check, verdict=Diagnosis.DOUBTFUL, found=said, figures=figures,
            remedy=f"at least {wanted:g} windows a second were asked for: see what else uses the "
            "device, and whether the model runs where you think (`atlasloop status`)",
        )  # fmt: skip
    return Finding(check=check, verdict=Diagnosis.GOOD, found=said, figures=figures)
