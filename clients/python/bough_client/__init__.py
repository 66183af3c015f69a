"""A typed client of a bough server, over the openai SDK."""

from bough_client.client import AsyncBough, Bough, EventsDropped
from bough_client.options import BoughOptions, Budget, Return
from bough_client.reply import (
    BoughReply,
    Candidate,
    Chunk,
    Completion,
    Node,
    RunEvent,
    RunTree,
    Spent,
    Strategy,
    TreeStats,
)

__all__ = [
    "AsyncBough",
    "Bough",
    "BoughOptions",
    "BoughReply",
    "Budget",
    "Candidate",
    "Chunk",
    "Completion",
    "EventsDropped",
    "Node",
    "Return",
    "RunEvent",
    "RunTree",
    "Spent",
    "Strategy",
    "TreeStats",
]
