"""Label texts without labels: teachers and prompts vote, as the second paper's did (2511.02044)."""

from saywhy.labelling.work import label, reckoned

__all__ = ["label", "reckoned"]
