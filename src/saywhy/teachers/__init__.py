"""Whatever writes reasonings: functions from questions to drafts."""

from saywhy.teachers.given import given
from saywhy.teachers.local import local
from saywhy.teachers.shape import Draft, Question, Teacher, Writer, paragraph

__all__ = ["Draft", "Question", "Teacher", "Writer", "given", "local", "paragraph"]
