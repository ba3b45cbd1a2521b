"""Whatever writes reasonings: functions from questions to drafts."""

from saywhy.teachers.brought import given
from saywhy.teachers.models import local
from saywhy.teachers.shape import Answered, Draft, Group, Memory, Question, Teacher, Writer, paragraph

__all__ = ["Answered", "Draft", "Group", "Memory", "Question", "Teacher", "Writer", "given", "local", "paragraph"]
