"""Sections of the loop and of its rewards."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from deeprec.config.section import Positive, Section


class EngineConfig(Section):
    """What generates the policy's tokens: transformers or vLLM in this process, or a server elsewhere.

    Prompt selection and evaluation use it, and ``deeprec serve policy`` starts vLLM's server with what is said of
    ``vllm``, whatever the kind. A stage's training generates as ``policy.generation`` says; ``deeprec explore`` and the
    recommender take transformers. A ``server`` has to serve the very policy directory that is opened, so it
    is for single steps, such as ``deeprec policy evaluate``; ``deeprec run`` makes its policies as it goes and refuses
    one.
    """

    kind: Literal["transformers", "vllm", "server"] = "transformers"
    """``transformers`` runs anywhere; ``vllm`` needs the extra ``gpu``; ``server`` is any OpenAI-compatible server."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """In this process: type of the weights while generating; ``auto`` is as stored (vLLM halves float32)."""
    url: str = ""
    """``server``: its address, such as ``http://policy:8000``; completions are asked for at ``/v1/completions``."""
    model: str = ""
    """``server``: the name it gives the policy; empty takes the policy's fingerprint or ``deeprec-policy`` where one is
    listed, else the only model."""
    prompts: Literal["auto", "tokens", "text"] = "auto"
    """``server``: how sequences travel; ``auto`` sends token ids where the server takes and returns them (vLLM)."""
    timeout: float = Field(300.0, gt=0)
    """``server``: seconds for one request, retries included."""
    requests: Positive = 64
    """``server``: requests under way at once."""
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1)
    """``vllm``: share of the accelerator's memory it takes for weights and cache."""
    max_model_len: int = Field(0, ge=0)
    """``vllm``: tokens of the longest sequence it keeps room for; 0 is the model's own limit."""
    tensor_parallel: Positive = 1
    """``vllm``: accelerators that one copy of the model is spread over."""
    enforce_eager: bool = False
    """``vllm``: no CUDA graphs; starts sooner, generates slower."""

    @model_validator(mode="after")
    def _server_has_an_address(self) -> Self:
        if self.kind == "server" and not self.url.startswith(("http://", "https://")):
            raise ValueError(
                f"engine.kind is 'server' and engine.url is {self.url!r}; give the server's address, such as "
                f"http://policy:8000"
            )
        if self.kind != "server" and self.url:
            raise ValueError(
                f"engine.url is {self.url!r}, which engine.kind {self.kind!r} does not use; set engine.kind to "
                f"'server' or drop engine.url"
            )
        return self


class ExploreConfig(Section):
    """The loop: limits, lists and prompt (method, section 1)."""

    items_per_call: Positive = 20
    """Items the TRM returns per call."""
    answer_size: Positive = 10
    """k: items in the answer."""
    max_calls: Positive = 8
    """Calls at most; one more ends the rollout."""
    max_new_tokens: Positive = 2048
    """New tokens per segment."""
    max_context: Positive = 16384
    """Prompt and completion tokens at most."""
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature in training; evaluation and serving are greedy."""
    prompt: Literal["full", "compact"] = "full"
    """``full`` explains the protocol in words; ``compact`` is for the tiny policy, which is taught it."""
    prompt_history: Positive = 20
    """Newest history items shown in the prompt."""
    fresh_lists: bool = False
    """Leave out of later lists what earlier calls of the rollout returned: more is found, and no title stands twice."""
    show_scores: bool = True
    """Print the TRM's match score (0–100) beside each title."""
    show_phrases: bool = False
    """Print an item's phrases on a line below its title."""
    answers: Literal["free", "retrieved"] = "free"
    """``retrieved``: while answering, the policy may write the titles of items it retrieved only, none twice, and has
    the lines numbered for it; ``free`` leaves the answer to it, and whether it is valid."""
    list_weight: float = Field(0.0, ge=0)
    """How much the order of the lists counts beside the policy's own opinion of a title, where ``answers`` is
    ``retrieved``: this times the logarithm of its merged reciprocal rank is added to the title's logit. The lessons of
    a warm start count it once, however much it is, as their teacher does."""
    batch_size: Positive = 256
    """Rollouts that advance together."""
    engine: EngineConfig = EngineConfig()

    @model_validator(mode="after")
    def _answer_fits(self) -> Self:
        if self.answer_size > self.items_per_call * self.max_calls:
            raise ValueError(
                f"answer_size is {self.answer_size}, but {self.max_calls} calls of {self.items_per_call} items "
                f"retrieve at most {self.items_per_call * self.max_calls}; lower answer_size or raise items_per_call"
            )
        if self.list_weight and self.answers == "free":
            raise ValueError(
                f"list_weight is {self.list_weight}, but answers are free, and only held answers can be weighed; set "
                f"answers to 'retrieved' or list_weight to 0"
            )
        return self


class StageRewards(Section):
    """Weights of one stage's reward parts (method, section 3).

    0 switches a part off; it is then not scored, except the format, from which the share of valid rollouts is read.
    """

    format: float = 0.0
    """0 if every format rule holds, else −1."""
    interaction: float = 0.0
    """0 if n ≤ 1 calls, else 0.5 · (min(n, 3) − 1)."""
    diversity: float = 0.0
    """0 if n ≤ 1 calls, else 0.2 · (1 − mean pairwise cosine of the preference embeddings)."""
    listwise: float = 0.0
    """1 + 0.2 · (k − rank) when the target is answered, else 0."""
    pointwise: float = 0.0
    """10 · rank-weighted mean similarity of the answered items to the target."""


class RewardsConfig(Section):
    """Reward composition by stage."""

    strict_format: bool = True
    """Also require k distinct catalogue items, each retrieved by this rollout; off reproduces the reference."""
    stage1: StageRewards = StageRewards(format=1.0, interaction=1.0, diversity=1.0)
    stage2: StageRewards = StageRewards(format=1.0, listwise=1.0, pointwise=1.0)
