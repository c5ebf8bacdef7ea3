"""A loop's last transition: the candidate is published or kept out, and the next round's settings follow from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from plaudit.feedback.releases import Arm, Releases
from plaudit.feedback.store import Store
from plaudit.loop import lineage
from plaudit.loop.contest import ANCHOR, opponents
from plaudit.loop.round import Result, Round, Standing, adapter_of, rounded
from plaudit.loop.settings import Config
from plaudit.models.load import digest_of, find_model
from plaudit.types import UserError

BY = "plaudit loop"
WIDER, NARROWER = 1.5, 0.67
"""What the KL target is multiplied by after a gain that is shown, and after a loss."""
LARGEST, SMALLEST = 4.0, 0.25
"""Of the KL target, as a multiple of the one that is set."""


def publish(round: Round) -> Result:
    """Where the gate says so, the candidate answers from now on under the loop's name; servers follow within a second.
    Its model card and lineage are written either way."""
    verdict = round.done("gate")
    published = verdict["decision"] == "publish"
    config, standing = round.config, round.standing
    arm = arm_of(config, adapter_of(round.directory, round.number))
    champion, version = (round.number, arm.version) if published else (standing.champion, standing.version)
    if published:
        release = Releases(round.store).publish(
            config.name, [arm], by=BY, note=f"round {round.number} of {round.directory}"
        )
        round.say(f"published as {config.name}: {arm.version} (release {release.number})")
    result = {
        "published": published,
        "champion": champion,
        "version": version,
        "candidate": arm.version,
        "kl_target": next_target(
            standing.kl_target,
            config.policy.kl_target,
            rate=verdict["rates"].get(opponents(round)[0], 0.5),
            published=published,
        ),
        "overlap": round.done("agree")["overlap"],
        "fresh": round.done("agree")["fresh"],
        "seq": round.done("collect")["seq"],
    }
    lineage.write(round, result)
    return result


def next_target(target: float, set_at: float, *, rate: float, published: bool) -> float:
    """The KL target of the next round, nats a token: wider where the gain was shown, since what is learned reaches as
    far; narrower where the candidate is preferred less often than its parent, which went further than its reward is
    right; else as it was. rate: of wins over the parent."""
    factor = WIDER if published else NARROWER if rate < 0.5 else 1.0
    return rounded(min(LARGEST * set_at, max(SMALLEST * set_at, factor * target)))


def arm_of(config: Config, adapter: Path | None) -> Arm:
    """The model with the adapter as it stands now, under a version of its own."""
    place = find_model(config.model).resolve()
    digest = digest_of(place, adapter)
    return Arm(
        f"{config.name}-{digest}",
        str(place),
        adapter=None if adapter is None else str(adapter.resolve()),
        digest=digest,
    )


def stand(config: Config, directory: Path, store: Store, standing: Standing) -> Standing:
    """As the release under the loop's name has it: the start is published where nothing is, a model that moved with its
    run is published from where it is now, and where somebody went back to an earlier round that one is the champion.
    UserError where another model is published."""
    releases = Releases(store)
    versions = {0: arm_of(config, None)}
    for number in range(1, config.stop.rounds + 1):
        adapter = adapter_of(directory, number)
        if adapter is not None and adapter.exists():
            versions[number] = arm_of(config, adapter)
    newest = releases.newest().get(config.name)
    if newest is None:
        releases.publish(config.name, [versions[0]], by=BY, note=f"the start of {directory}")
        return standing
    found = [
        number for number, arm in versions.items() if [one.version for one in newest.arms] == [arm.version]
    ]
    if not found:
        told = ", ".join(arm.version for arm in newest.arms)
        raise UserError(
            f"is published as {told}, which is no model of this loop", where=f"name {config.name}",
            fix="give the loop another name, or publish the model again that it had published",
        )  # fmt: skip
    if newest.arms != (versions[found[0]],):
        releases.publish(config.name, [versions[found[0]]], by=BY, note=f"moved to {directory}")
    return replace(standing, champion=found[0], version=versions[found[0]].version)


def follow(found: Result) -> Standing:
    """What a round's result is for the next one."""
    return Standing(
        found["champion"],
        found["version"],
        found["kl_target"],
        found["overlap"],
        found["fresh"],
        found["seq"],
    )


def reached(config_target: float | None, verdict: Result, published: bool) -> bool:
    """Whether the win rate over the start is shown to be as high as wanted."""
    return config_target is not None and published and verdict["bounds"][ANCHOR] >= config_target
