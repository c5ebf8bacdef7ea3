"""Models of families that our own forward does not have, through transformers' own: to sample from, not to train.

Slower, and said so where one is opened. Remote code stays off, and weights are read from safetensors alone.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plaudit.data.tokenizer import Tokenizer
from plaudit.models.llama import Unsupported
from plaudit.models.load import Model, find_model, load_model, look_up, read_config
from plaudit.types import UserError


@dataclass(frozen=True, slots=True)
class Foreign:
    """transformers' model with its tokenizer and the directory that it was read from. context: tokens a text."""

    directory: Path
    inner: Any
    tokenizer: Tokenizer
    context: int

    @property
    def device(self) -> torch.device:
        return torch.device(self.inner.device)

    @property
    def takes(self) -> set[str]:
        """The names of what its forward takes."""
        return set(inspect.signature(self.inner.forward).parameters)


def load_any(name: str, dtype: torch.dtype, device: torch.device | str = "cpu") -> Model | Foreign:
    """The model through our own forward, or, where that lacks its family, through transformers', with a line on
    stderr that says so. UserError as for `load_model`."""
    try:
        return load_model(name, dtype, device)
    except Unsupported as error:
        _check_known(name, error)
        found = load_foreign(name, dtype, device)
        lacks = error.what.removesuffix(" is not supported")
        line = f"{name}: goes through transformers, which is slower: ours lacks its {lacks}"
        print(line, file=sys.stderr, flush=True)
        return found


def find_any(name: str) -> Path:
    """The directory of a model that `load_any` takes, without its weights. UserError as `look_up`."""
    try:
        return look_up(name)[0]
    except Unsupported as error:
        return _check_known(name, error)


def _check_known(name: str, error: Unsupported) -> Path:
    """The model's directory; the error again where transformers has no causal language model of that type either."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    directory = find_model(name)
    if read_config(directory).get("model_type") not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise error
    return directory


def load_foreign(name: str, dtype: torch.dtype, device: torch.device | str = "cpu") -> Foreign:
    """transformers' own model of a directory. UserError for files that are missing or corrupt, for what transformers
    does not know either, and for what is no causal language model."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    directory = find_model(name)
    config = read_config(directory)
    loudness = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        inner, told = AutoModelForCausalLM.from_pretrained(
            str(directory),
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # each family raises kinds of its own
        reason = (str(error) or type(error).__name__).strip().splitlines()[0][:200]
        raise UserError(
            f"model type {str(config.get('model_type'))!r} cannot be read ({reason})",
            where=str(directory),
            fix="use a causal language model with safetensors",
        ) from None
    finally:
        logging.enable_progress_bar()
        logging.set_verbosity(loudness)
    if told["missing_keys"]:  # transformers would draw them at random
        raise UserError(f"{min(told['missing_keys'])} is missing", where=str(directory))
    if inner.config.is_encoder_decoder:
        raise UserError(
            "is an encoder with a decoder", where=str(directory), fix="use a causal language model"
        )
    context = getattr(inner.config.get_text_config(), "max_position_embeddings", None)
    inner = inner.to(device).eval().requires_grad_(False)
    return Foreign(directory, inner, Tokenizer.load(directory), int(context or sys.maxsize))


@torch.no_grad()
def foreign_logprobs(model: Foreign, prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
    """[T]: the log-probability of each token of a completion at temperature 1, nats, in float32 or wider; one text a
    pass."""
    ids = torch.tensor([[*prompt, *completion]], device=model.device)
    logits = model.inner(input_ids=ids[:, :-1], use_cache=False).logits[0, len(prompt) - 1 :]
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.log_softmax(wide, -1).gather(1, ids[0, len(prompt) :, None])[:, 0]
