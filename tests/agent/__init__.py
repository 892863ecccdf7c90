"""A simulator of the released device agent, for tests: its wire format and its behaviour."""

from tests.agent.agent import Agent, AgentEndedError, Applied, CallError, Hardware
from tests.agent.clock import ManualClock, SystemClock
from tests.agent.verify import BadSignatureError

__all__ = [
    "Agent",
    "AgentEndedError",
    "Applied",
    "BadSignatureError",
    "CallError",
    "Hardware",
    "ManualClock",
    "SystemClock",
]
