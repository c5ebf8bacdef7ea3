"""What a profile says: operators summed by phase and by kind, so that every moment of a step is counted once.

An operator's own time (without that of the operators inside it) goes to the innermost phase around it
(`plaudit.phases`) and to one kind; what no operator covers is Python's. So the sums are the step's wall time. What
other threads did meanwhile stands beside and is no part of them. No torch: spans are plain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from plaudit import phases

STEP, ELSEWHERE, BACKWARD, OPTIMISER = "plaudit: step", "elsewhere", "learning: backward", "optimiser"
NODE = "autograd::engine::evaluate_function: "
"""What the profiler puts before the name of a node of a backward pass."""
PYTHON, COPIES, ELEMENTWISE = "Python", "gathers, copies", "elementwise"
KINDS = (
    "products", "output layer", "output softmax", "attention", "norms", "rotary", "gate", COPIES, ELEMENTWISE,
    OPTIMISER, PYTHON,
)  # fmt: skip
"""products: of the blocks, adapters and heads. output softmax: what is done with logits, the draw too. Python: what no
operator covers, views and the allocation of tensors, which touch no numbers."""
FAMILIES = {
    "_Attend": "attention",
    "kind: attention": "attention",
    "aten::scaled_dot_product_attention": "attention",
    "_RMSNorm": "norms",
    "aten::rms_norm": "norms",
    "_Rotate": "rotary",
    "kind: rotary": "rotary",
    "_Gated": "gate",
    "aten::silu": "gate",
    "aten::gelu": "gate",
    "_SelectedLogprobs": "output",
    "kind: output layer": "output",
    "phase: sampling: draw": "output",
}
"""What the operators inside these belong to, whatever they are; autograd functions have it in both passes."""
PRODUCTS = frozenset({
    "_convolution_pointwise", "_linear_pointwise", "addmm", "addmv", "baddbmm", "bmm", "dot", "einsum", "linear",
    "matmul", "mm", "mv"
})  # fmt: skip
MOVES = frozenset({
    "_index_put_impl", "_to_copy", "cat", "clone", "contiguous", "copy", "embedding", "embedding_dense_backward",
    "fill", "flip", "full", "full_like", "gather", "index", "index_add", "index_copy", "index_put",
    "index_select", "masked_fill", "masked_scatter", "masked_select", "new_full", "new_zeros", "nonzero",
    "one_hot", "ones", "ones_like", "repeat", "repeat_interleave", "roll", "scatter", "scatter_add", "stack",
    "take", "to", "tril", "zero", "zeros", "zeros_like"
})  # fmt: skip
VIEWS = frozenset({
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "chunk", "detach", "empty", "empty_like",
    "empty_strided", "expand", "expand_as", "flatten", "lift_fresh", "narrow", "new_empty", "new_empty_strided",
    "numpy_T", "permute", "requires_grad", "reshape", "resize", "resolve_conj", "resolve_neg", "select", "set",
    "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unflatten", "unsqueeze", "view",
    "view_as"
})  # fmt: skip
DEAREST = 10
"""Operators that are named one by one."""


class Span(NamedTuple):
    """What a profiler saw on one thread, from start to end (seconds)."""

    name: str
    start: float
    end: float
    thread: int


class Own(NamedTuple):
    """A span's time (seconds) without that of the spans inside it, and where it belongs."""

    phase: str
    kind: str
    name: str
    seconds: float


@dataclass(slots=True)
class _Open:
    span: Span
    phase: str
    family: str | None
    own: float

    def close(self) -> Own:
        name = self.span.name
        return Own(self.phase, kind_of(name, self.family, self.phase), name, self.own)


def own_times(spans: Sequence[Span]) -> Iterator[Own]:
    """Each span's own time, of spans on one thread: nested, or one after the other."""
    open_ = list[_Open]()
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        while open_ and open_[-1].span.end <= span.start:
            yield open_.pop().close()
        phase, family = (open_[-1].phase, open_[-1].family) if open_ else (ELSEWHERE, None)
        if open_:  # clocks are read one after the other: what is inside ends no later
            span = span._replace(end=min(span.end, open_[-1].span.end))
            open_[-1].own -= span.end - span.start
        family = FAMILIES.get(span.name.removesuffix("Backward"), family)
        open_.append(_Open(span, _phase_of(span.name) or phase, family, span.end - span.start))
    while open_:
        yield open_.pop().close()


def _phase_of(name: str) -> str | None:
    """The phase that a span of this name begins; None where it begins none."""
    if name.startswith(phases.PHASE):
        return name.removeprefix(phases.PHASE)
    return BACKWARD if name.startswith(NODE) else None


def kind_of(name: str, family: str | None, phase: str) -> str:
    """One of KINDS for a span of this name inside that family and phase."""
    room, _, operator = name.partition("::")
    operator = operator.rstrip("_")
    if room not in ("aten", "mkldnn") or operator in VIEWS:
        return PYTHON
    if phase == OPTIMISER:
        return OPTIMISER
    if family == "output":
        return "output layer" if operator in PRODUCTS else "output softmax"
    if family is not None:
        return COPIES if family == "attention" and operator in MOVES else family
    return "products" if operator in PRODUCTS else COPIES if operator in MOVES else ELEMENTWISE


def attribute(spans: Sequence[Span]) -> dict[str, Any]:
    """What a step's time went to, from all that the profiler saw; the span called STEP is the step.

    seconds: the step's wall time. phases: {phase: {kind: seconds}} of its thread, in order of time; all together are
    `seconds`. beside: the same of other threads. operators: the DEAREST of its thread, each with phase, kind, calls.
    """
    step = next(span for span in spans if span.name == STEP)
    threads: dict[int, list[Span]] = {}
    for span in spans:
        start, end = max(span.start, step.start), min(span.end, step.end)
        if start < end or (start == end and span.start == start):
            threads.setdefault(span.thread, []).append(span._replace(start=start, end=end))
    mine = list(own_times(threads.pop(step.thread)))
    others = [own for spans in threads.values() for own in own_times(spans)]
    order = [begun for span in sorted(spans, key=lambda span: span.start) if (begun := _phase_of(span.name))]
    named: dict[tuple[str, str, str], list[float]] = {}
    for own in mine:
        if own.kind != PYTHON:
            cell = named.setdefault((own.phase, own.kind, own.name), [0.0, 0])
            cell[0] += own.seconds
            cell[1] += 1
    dearest = sorted(named.items(), key=lambda item: -item[1][0])[:DEAREST]
    return {
        "seconds": step.end - step.start,
        "phases": _table(mine, order),
        "beside": _table(others, order),
        "operators": [
            {"name": name, "phase": phase, "kind": kind, "calls": int(calls), "seconds": seconds}
            for (phase, kind, name), (seconds, calls) in dearest
        ],
    }


def _table(owns: Sequence[Own], order: Sequence[str]) -> dict[str, dict[str, float]]:
    """{phase: {kind: seconds}}, phases in this order and then those that it does not have, kinds as in KINDS."""
    sums: dict[tuple[str, str], float] = {}
    for own in owns:
        sums[own.phase, own.kind] = sums.get((own.phase, own.kind), 0.0) + own.seconds
    found = {phase for phase, _ in sums}
    ordered = dict.fromkeys([*order, *sorted(found)])
    return {
        phase: {kind: sums[phase, kind] for kind in KINDS if (phase, kind) in sums}
        for phase in ordered
        if phase in found
    }
