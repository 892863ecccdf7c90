"""A simulator of the released device agent, for tests: its wire format and its behaviour."""

from tests.agent.agent import Agent, AgentEnded, Applied, CallFailed, Hardware
from tests.agent.clock import ManualClock, SystemClock
from tests.agent.verify import BadSignature

__all__ = [
    "Agent",
    "AgentEnded",
    "Applied",
    "BadSignature",
    "CallFailed",
    "Hardware",
    "ManualClock",
    "SystemClock",
]
