"""Environment variables of a run's tasks, on this machine and in pods."""

from deeprec.config import Config


def environment(config: Config) -> dict[str, str]:
    """Environment variables of the tasks' processes: nothing calls home, output is not held back.

    Where no model has to be fetched, the Hugging Face hub is not asked. How threads wait for one another is left to
    whoever runs it: tasks run one after the other, and threads that sleep between small operations learn a third more
    slowly than those that spin for a moment, as is the default.
    """
    variables = {
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "FEAST_USAGE": "False",
        "GX_ANALYTICS_ENABLED": "false",
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
    }
    if config.policy.model == "tiny" and config.text.provider != "sentence-transformers":
        variables["HF_HUB_OFFLINE"] = "1"
    return variables
