"""A simulator of the released device agent, for tests: its wire format and its behaviour."""

from tests.fakes.agent.agent import Agent, AgentEndedError, Applied, CallError, Hardware
from tests.fakes.agent.apply import ApplyError
from tests.fakes.agent.clock import ManualClock, SystemClock
from tests.fakes.agent.config import Config, read_config
from tests.fakes.agent.verify import BadSignatureError

__all__ = [
    "Agent",
    "AgentEndedError",
    "Applied",
    "ApplyError",
    "BadSignatureError",
    "CallError",
    "Config",
    "Hardware",
    "ManualClock",
    "SystemClock",
    "read_config",
]
