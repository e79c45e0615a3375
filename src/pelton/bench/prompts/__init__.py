"""What the requests hold: texts exact in the served model's own tokens. Knows nothing of when they are sent."""

from pelton.bench.prompts.factory import PromptFactory
from pelton.bench.prompts.prompt import Prompt

__all__ = ["Prompt", "PromptFactory"]
