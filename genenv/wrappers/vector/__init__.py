"""Wrappers of a vector environment."""

from genenv.wrappers.vector.ema_action_smoothing import EMAActionSmoothing
from genenv.wrappers.vector.running_cost import RunningCost
from genenv.wrappers.vector.terminal_reward import TerminalReward

__all__ = ["EMAActionSmoothing", "RunningCost", "TerminalReward"]
