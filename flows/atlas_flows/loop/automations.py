"""Prefect automations of the loop: the one that carries it on, and notifications from a template.

`templates/notifications.yaml` lists the notification of each event. A site that names a
notification block (``ATLASLOOP_NOTIFICATION_BLOCK``, as ``slack-webhook/loop``) gets them; another
one may pass the file to ``prefect automation create --from-file`` after filling in its block.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from atlas_core.errors import ConfigurationError
from atlas_core.review import QUEUE_DRAINED
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events import DeploymentEventTrigger
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound

from atlas_flows.loop.state_machine import Mode

NOTIFICATIONS = Path(__file__).with_name("templates") / "notifications.yaml"

BLOCK = "${NOTIFICATION_BLOCK}"
"""Stands in the template for the id of the site's block."""


def when_drained() -> DeploymentEventTrigger:
    """Goes on with the loop when the review service says that the queue is empty."""
    return DeploymentEventTrigger(
        name="atlasloop: go on when the queue is drained",
        expect={QUEUE_DRAINED},
        parameters={"mode": Mode.CONTINUE.value},
    )


def notifications(block_id: str) -> tuple[AutomationCore, ...]:
    """The automations of the template, with the site's block."""
    text = NOTIFICATIONS.read_text(encoding="utf-8").replace(BLOCK, block_id)
    automations: list[dict[str, Any]] = yaml.safe_load(text)["automations"]
    return tuple(AutomationCore.model_validate(one) for one in automations)


def notify(block: str | None) -> Sequence[str]:
    """Create or update the notifications; their names.

    Args:
        block: TYPE/NAME of a notification block; None: nothing is done.

    Raises:
        ConfigurationError: the server has no such block.
    """
    if block is None:
        return ()
    with get_client(sync_client=True) as client:
        wanted = notifications(_block_id(client, block))
        for one in wanted:
            known = client.read_automations_by_name(one.name)
            if known:
                client.update_automation(known[0].id, one)
            else:
                client.create_automation(one)
    return tuple(one.name for one in wanted)


def _block_id(client: SyncPrefectClient, block: str) -> str:
    kind, _, name = block.partition("/")
    try:
        return str(client.read_block_document_by_name(name, kind).id)
    except ObjectNotFound:
        raise ConfigurationError(
            "Prefect has no such notification block",
            expected="TYPE/NAME as the UI shows it under Blocks",
            got=block,
            remedy="make it in the Prefect UI, or leave ATLASLOOP_NOTIFICATION_BLOCK empty",
        ) from None
