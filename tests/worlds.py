"""Two worlds whose optima can be computed, a bandit and a chain: for tests that an algorithm learns, and without bias.

A world is a table, as a text's would be with three words: a prompt begins in a state, an action (a token) leads to the
next, and one of them ends the episode. A policy is a table of logits, [states, actions], and a completion a path. Paths
are padded on the right as completions are, so that every loss over [B, T] can be fed with them.

    world = chain()
    logits = torch.zeros(world.reward.shape, dtype=torch.float64, requires_grad=True)
    paths = sample(world, logits, 8, generator)       # eight completions of each prompt
    logprobs(logits, paths)                           # [B, T], with gradient
    expected_return(world, logits)                    # exact, with gradient; at most best_return(world)
    every_path(world)                                 # all that can happen, for expectations by enumeration
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

END = -1


class World(NamedTuple):
    """starts: [P] long, the state of each prompt. after: [S, A] long, the next state, or END. reward: [S, A] float64,
    expected; what is drawn has a normal error of deviation `noise`. horizon: the most actions that a path may have.
    """

    starts: Tensor
    after: Tensor
    reward: Tensor
    horizon: int
    noise: float = 0.0


class Paths(NamedTuple):
    """Completions, [B, T], 0 where mask is False; T is the horizon.

    states: before the action; actions; rewards: after it; mask; prompt: [B], which of world.starts began it (and its
    group); ended: [B] bool, False where the horizon cut it off.
    """

    states: Tensor
    actions: Tensor
    rewards: Tensor
    mask: Tensor
    prompt: Tensor
    ended: Tensor


def bandit() -> World:
    """Three prompts, five answers of one token each, with rewards 0.1 to 0.9 in another order for each prompt."""
    reward = torch.tensor(
        [[0.1, 0.3, 0.5, 0.7, 0.9], [0.7, 0.9, 0.3, 0.1, 0.5], [0.5, 0.1, 0.9, 0.3, 0.7]], dtype=torch.float64
    )
    return World(torch.arange(3), torch.full((3, 5), END), reward, horizon=1, noise=0.2)


def chain(horizon: int = 8) -> World:
    """Four states in a row, the prompts begin in the first three: back, on, or stop. Stopping is worth 1 in the last
    state and nothing before it, and a step costs 0.01, so that whoever never saw the end does best to stop at once.
    """
    place = torch.arange(4)
    after = torch.stack(
        [(place - 1).clamp(min=0), (place + 1).clamp(max=3), torch.full_like(place, END)], dim=1
    )
    reward = torch.tensor([[-0.01, -0.01, 0.0]] * 3 + [[-0.01, -0.01, 1.0]], dtype=torch.float64)
    return World(torch.arange(3), after, reward, horizon)


@torch.no_grad()
def sample(world: World, logits: Tensor, each: int, generator: torch.Generator) -> Paths:
    """`each` paths from each prompt, drawn from the softmax of logits [S, A]; those of a prompt stand together."""
    probs = _log_softmax(logits).exp()
    prompt = torch.arange(len(world.starts)).repeat_interleave(each)
    steps = range(world.horizon)
    draws = torch.rand(world.horizon, len(prompt), generator=generator, dtype=torch.float64)
    bounds = probs.cumsum(-1)
    bounds[:, -1] = 1.0
    actions = torch.zeros(len(prompt), world.horizon, dtype=torch.long)
    state = world.starts[prompt]
    for t in steps:
        actions[:, t] = (draws[t].unsqueeze(1) >= bounds[state]).sum(-1)
        state = world.after[state, actions[:, t]].clamp(min=0)
    paths = follow(world, prompt, actions)
    error = torch.randn(paths.rewards.shape, generator=generator, dtype=torch.float64)
    return paths._replace(rewards=paths.rewards + torch.where(paths.mask, world.noise * error, 0.0))


def every_path(world: World) -> Paths:
    """Each path that can happen, once. Its probability is the exp of its summed `logprobs`; a prompt's sum to 1."""
    choices = torch.cartesian_prod(*[torch.arange(world.after.shape[1])] * world.horizon)
    choices = choices.reshape(-1, world.horizon)
    prompt = torch.arange(len(world.starts)).repeat_interleave(len(choices))
    paths = follow(world, prompt, choices.repeat(len(world.starts), 1))
    # what was chosen after the end makes no other path: keep the one that chose 0 there
    return Paths(*(x[(paths.actions == choices.repeat(len(world.starts), 1)).all(1)] for x in paths))


def follow(world: World, prompt: Tensor, actions: Tensor) -> Paths:
    """The paths that these actions take, [B, T]; what they say after the end is dropped."""
    state, going = world.starts[prompt], torch.ones(len(prompt), dtype=torch.bool)
    states, mask = torch.zeros_like(actions), torch.zeros(actions.shape, dtype=torch.bool)
    for t in range(world.horizon):
        states[:, t], mask[:, t] = state, going
        after = world.after[state, actions[:, t]]
        going, state = going & (after != END), after.clamp(min=0)
    states, actions = torch.where(mask, states, 0), torch.where(mask, actions, 0)
    rewards = torch.where(mask, world.reward[states, actions], 0.0)
    return Paths(states, actions, rewards, mask, prompt, ~going)


def logprobs(logits: Tensor, paths: Paths) -> Tensor:
    """[B, T], nats, of the actions taken; with gradient to logits [S, A]."""
    return _log_softmax(logits)[paths.states, paths.actions]


def expected_return(world: World, logits: Tensor) -> Tensor:
    """The mean over prompts of the expected sum of rewards, by dynamic programming; with gradient."""
    probs = _log_softmax(logits).exp()
    return _value(world, lambda q: (probs * q).sum(-1))


def best_return(world: World) -> float:
    """What the best policy expects."""
    return _value(world, lambda q: q.amax(-1)).item()


def _log_softmax(logits: Tensor) -> Tensor:
    """torch's own wakes its threads for fifteen numbers, which on a busy machine takes longer than all else."""
    return logits - logits.logsumexp(-1, keepdim=True)


def _value(world: World, of_actions: Callable[[Tensor], Tensor]) -> Tensor:
    value = torch.zeros(len(world.after), dtype=torch.float64)
    for _ in range(world.horizon):
        later = torch.where(world.after == END, 0.0, value[world.after.clamp(min=0)])
        value = of_actions(world.reward + later)
    return value[world.starts].mean()
